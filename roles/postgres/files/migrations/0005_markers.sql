-- Markers, by which a move's loss is measured: the home's region agent writes one a second. A ring of fixed slots, so that
-- it never grows; ten minutes of it, so that a new home finds the old one's last marker long after it began itself.
CREATE TABLE dr_markers (
    slot  integer PRIMARY KEY CHECK (slot >= 0),
    seq   bigint NOT NULL,
    epoch bigint NOT NULL,
    at    timestamptz NOT NULL
) WITH (fillfactor = 50);
COMMENT ON TABLE dr_markers IS 'Ring of markers that the home''s region agent writes; the newest of an epoch is the last write that is known to be here.';
