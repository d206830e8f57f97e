-- Incidents that people were told of, and silences.

CREATE TABLE arbees.alerts (
    sequence            bigint      PRIMARY KEY,
    incident            text        NOT NULL,
    kind                text        NOT NULL,
    severity            text        NOT NULL,
    summary             text        NOT NULL,
    raised_at           timestamptz NOT NULL,
    times               integer     NOT NULL,
    resolved_at         timestamptz,
    first_delivered_at  timestamptz,
    delivered_to        text        NOT NULL,
    failed_on           text        NOT NULL,
    suppressed          text        NOT NULL,
    acknowledged_at     timestamptz,
    acknowledged_by     text,
    is_false_alarm      boolean     NOT NULL,
    changed_sequence    bigint      NOT NULL
);
COMMENT ON TABLE arbees.alerts IS 'Each incident from its first alert to its end, folded from ALERTS.';
COMMENT ON COLUMN arbees.alerts.sequence IS 'ALERTS sequence of the event that opened it';
COMMENT ON COLUMN arbees.alerts.times IS 'how often it was raised while it lasted';
COMMENT ON COLUMN arbees.alerts.delivered_to IS 'channels that took a message about it, by comma';
COMMENT ON COLUMN arbees.alerts.failed_on IS 'channels on which a message was given up, by comma';
COMMENT ON COLUMN arbees.alerts.suppressed IS 'why it was held back at first, if it was: rate limit or silenced';
COMMENT ON COLUMN arbees.alerts.changed_sequence IS 'ALERTS sequence of the last event that changed the row';
CREATE INDEX alerts_open ON arbees.alerts (raised_at) WHERE resolved_at IS NULL;
CREATE INDEX alerts_by_incident ON arbees.alerts (incident, sequence);

CREATE TABLE arbees.alert_silences (
    kind      text        PRIMARY KEY,
    until_at  timestamptz NOT NULL,
    operator  text        NOT NULL,
    sequence  bigint      NOT NULL
);
COMMENT ON TABLE arbees.alert_silences IS 'Kinds of alerts that nobody is told of until then; "all" for every kind.';

COMMENT ON TABLE arbees.event_archive IS 'CONTROL and ALERTS, with every payload byte for byte, for the day the log is gone.';
