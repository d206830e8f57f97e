-- Tables derived from the log. All of them can be dropped and rebuilt from what the log still holds.
-- Older programs keep tables of the same names in "public"; those are left alone.

CREATE TABLE arbees.projection_checkpoints (
    stream      text        PRIMARY KEY,
    sequence    bigint      NOT NULL,
    updated_at  timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE arbees.projection_checkpoints IS
    'How far each stream has been applied. Changes in one transaction with the rows it brought, by compare-and-set.';

CREATE TABLE arbees.games (
    game_id          text        PRIMARY KEY,
    league           text        NOT NULL,
    event_id         text        NOT NULL,
    home_team        text        NOT NULL,
    away_team        text        NOT NULL,
    starts_at        timestamptz,
    phase            text        NOT NULL,
    phase_since_at   timestamptz NOT NULL,
    status           text        NOT NULL,
    markets          jsonb       NOT NULL,
    queued_since_at  timestamptz,
    sequence         bigint      NOT NULL
);
COMMENT ON TABLE arbees.games IS 'Every game ever made known, as it stands.';
COMMENT ON COLUMN arbees.games.game_id IS '{league}-{ESPN event id}';
COMMENT ON COLUMN arbees.games.phase IS 'scheduled, live, suspended, postponed, canceled or finished';
COMMENT ON COLUMN arbees.games.sequence IS 'CONTROL sequence of the last event about the game';

CREATE TABLE arbees.assignments (
    game_id       text        PRIMARY KEY,
    shard_id      text        NOT NULL,
    epoch         bigint      NOT NULL,
    assigned_at   timestamptz NOT NULL,
    confirmed_at  timestamptz,
    sequence      bigint      NOT NULL
);
COMMENT ON TABLE arbees.assignments IS 'Who watches which game now. A game without a row is watched by nobody.';
COMMENT ON COLUMN arbees.assignments.epoch IS
    'generation * 2^40 + sequence of the event that made the assignment; newer is greater';
COMMENT ON COLUMN arbees.assignments.confirmed_at IS 'when the shard first reported the game under this epoch';
CREATE INDEX assignments_by_shard ON arbees.assignments (shard_id);

CREATE TABLE arbees.assignment_history (
    game_id       text        NOT NULL,
    epoch         bigint      NOT NULL,
    shard_id      text        NOT NULL,
    assigned_at   timestamptz NOT NULL,
    cause         text        NOT NULL,
    rule          text        NOT NULL,
    candidates    jsonb       NOT NULL,
    rejections    jsonb       NOT NULL,
    confirmed_at  timestamptz,
    ended_at      timestamptz,
    end_cause     text,
    PRIMARY KEY (game_id, epoch)
);
COMMENT ON TABLE arbees.assignment_history IS 'Who watched which game, from when to when, and why.';
CREATE INDEX assignment_history_by_shard ON arbees.assignment_history (shard_id, assigned_at);

CREATE TABLE arbees.services (
    kind           text        NOT NULL,
    instance       text        NOT NULL,
    process_id     text        NOT NULL,
    started_at     timestamptz,
    version        text        NOT NULL,
    shard_type     text        NOT NULL,
    max_games      integer     NOT NULL,
    on_log         boolean     NOT NULL,
    registered_at  timestamptz NOT NULL,
    restarts       integer     NOT NULL,
    sequence       bigint      NOT NULL,
    PRIMARY KEY (kind, instance)
);
COMMENT ON TABLE arbees.services IS 'Every service that has ever beaten, with the process that beat last.';

CREATE TABLE arbees.heartbeats_latest (
    kind          text        NOT NULL,
    instance      text        NOT NULL,
    process_id    text        NOT NULL,
    status        text        NOT NULL,
    beat_at       timestamptz NOT NULL,
    checks        jsonb       NOT NULL,
    metrics       jsonb       NOT NULL,
    games         jsonb       NOT NULL,
    last_applied  bigint      NOT NULL,
    sequence      bigint      NOT NULL,
    PRIMARY KEY (kind, instance)
);
COMMENT ON TABLE arbees.heartbeats_latest IS 'The last heartbeat of each service on the log. games: {game id: epoch}.';

CREATE TABLE arbees.game_states (
    sequence       bigint      PRIMARY KEY,
    game_id        text        NOT NULL,
    epoch          bigint      NOT NULL,
    shard_id       text        NOT NULL,
    observed_at    timestamptz NOT NULL,
    status         text        NOT NULL,
    state          text        NOT NULL,
    home_team      text        NOT NULL,
    away_team      text        NOT NULL,
    home_score     integer,
    away_score     integer,
    period         integer,
    clock          text,
    possession     text,
    home_win_prob  double precision
);
COMMENT ON TABLE arbees.game_states IS 'Every change of a game that its shard saw, in the order of GAME_STATES.';
CREATE INDEX game_states_by_game ON arbees.game_states (game_id, sequence DESC);

CREATE TABLE arbees.event_archive (
    stream       text        NOT NULL,
    sequence     bigint      NOT NULL,
    subject      text        NOT NULL,
    event_type   text        NOT NULL,
    headers      json        NOT NULL,
    payload      bytea       NOT NULL,
    stored_at    timestamptz NOT NULL,
    PRIMARY KEY (stream, sequence)
);
COMMENT ON TABLE arbees.event_archive IS 'CONTROL, with every payload byte for byte, for the day the log is gone.';

CREATE TABLE arbees.dead_letters (
    stream    text        NOT NULL,
    sequence  bigint      NOT NULL,
    subject   text        NOT NULL,
    headers   jsonb       NOT NULL,
    payload   bytea       NOT NULL,
    error     text        NOT NULL,
    seen_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (stream, sequence)
);
COMMENT ON TABLE arbees.dead_letters IS 'Messages that are no valid events, and why. They stop nothing.';
