-- Views for people, and a role that may only look.

CREATE VIEW arbees.v_current_assignments AS
SELECT a.game_id, g.league, g.away_team, g.home_team, g.phase, a.shard_id, a.assigned_at, a.confirmed_at, a.epoch
FROM arbees.assignments a JOIN arbees.games g USING (game_id);
COMMENT ON VIEW arbees.v_current_assignments IS 'Who watches which game now.';

CREATE VIEW arbees.v_shard_load AS
SELECT s.instance AS shard_id, s.status, s.drain, count(a.game_id) AS games, s.max_games,
       greatest(s.max_games - count(a.game_id), 0) AS free
FROM arbees.services s LEFT JOIN arbees.assignments a ON a.shard_id = s.instance
WHERE s.kind = 'shard'
GROUP BY s.instance, s.status, s.drain, s.max_games;
COMMENT ON VIEW arbees.v_shard_load IS 'How many games each shard has, and how many more it could take.';

CREATE VIEW arbees.v_unwatched_games AS
SELECT g.game_id, g.league, g.phase, a.shard_id, s.status AS shard_status,
       CASE WHEN a.game_id IS NULL THEN 'nobody has it'
            WHEN s.status IN ('dead', 'retired') THEN 'its shard is gone'
            ELSE 'its shard has not said that it watches' END AS why,
       CASE WHEN a.game_id IS NULL THEN coalesce(g.queued_since_at, g.phase_since_at)
            WHEN s.status IN ('dead', 'retired') THEN s.status_since_at
            ELSE a.assigned_at END AS since
FROM arbees.games g
LEFT JOIN arbees.assignments a USING (game_id)
LEFT JOIN arbees.services s ON s.kind = 'shard' AND s.instance = a.shard_id
WHERE g.phase = 'live'
    AND (a.game_id IS NULL OR a.confirmed_at IS NULL OR g.queued_since_at IS NOT NULL OR s.status IN ('dead', 'retired'));
COMMENT ON VIEW arbees.v_unwatched_games IS 'Games in play that nobody watches now, why, and since when.';

CREATE INDEX assignment_history_by_time ON arbees.assignment_history (assigned_at DESC);

CREATE VIEW arbees.v_recent_moves AS
SELECT h.game_id, p.shard_id AS from_shard, h.shard_id AS to_shard, h.assigned_at AS moved_at, h.cause, h.rule,
       extract(epoch FROM h.confirmed_at - h.assigned_at)::double precision AS handover_seconds
FROM arbees.assignment_history h
JOIN LATERAL (
    SELECT p.shard_id, p.ended_at FROM arbees.assignment_history p
    WHERE p.game_id = h.game_id AND p.epoch < h.epoch ORDER BY p.epoch DESC LIMIT 1) p ON p.ended_at = h.assigned_at
WHERE h.assigned_at > now() - interval '24 hours';
COMMENT ON VIEW arbees.v_recent_moves IS
    'Games that changed hands within a day, why, and how long the new shard took to say that it watches.';

CREATE VIEW arbees.v_alert_timeline AS
SELECT raised_at, resolved_at, severity, kind, incident, summary,
       extract(epoch FROM coalesce(resolved_at, now()) - raised_at)::double precision AS lasted_seconds,
       extract(epoch FROM first_delivered_at - raised_at)::double precision AS told_after_seconds,
       delivered_to, acknowledged_by, is_false_alarm
FROM arbees.alerts;
COMMENT ON VIEW arbees.v_alert_timeline IS 'Incidents from their first alert to their end, and when people were told.';

CREATE VIEW arbees.v_assignment_latency AS
SELECT date_trunc('hour', assigned_at) AS hour, count(*) AS assignments, count(confirmed_at) AS confirmed,
       percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM confirmed_at - assigned_at)::double precision)
           AS p50_seconds,
       percentile_cont(0.99) WITHIN GROUP (ORDER BY extract(epoch FROM confirmed_at - assigned_at)::double precision)
           AS p99_seconds
FROM arbees.assignment_history
GROUP BY 1;
COMMENT ON VIEW arbees.v_assignment_latency IS
    'By hour: how long shards took from an assignment to the word that they watch.';

-- Where the migrating user may make roles; elsewhere somebody who may does.
DO $$
BEGIN
    BEGIN
        CREATE ROLE arbees_reader NOLOGIN;
    EXCEPTION WHEN duplicate_object OR unique_violation THEN
        -- Roles are the whole cluster's: another database has made it.
        NULL;
    END;
    GRANT USAGE ON SCHEMA arbees TO arbees_reader;
    GRANT SELECT ON ALL TABLES IN SCHEMA arbees TO arbees_reader;
    ALTER DEFAULT PRIVILEGES IN SCHEMA arbees GRANT SELECT ON TABLES TO arbees_reader;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE NOTICE 'role arbees_reader was not made: this user may not';
END $$;
