-- Embeddings, written in the transaction of the row that they belong to, and read in order by each region's indexer.
--
-- Why txid: sequence numbers are handed out when a row is written, not when it is committed. A reader that only keeps
-- the highest sequence it saw would skip a row with a lower one that commits later. A reader that never skips anything
-- keeps the pair (txid, sequence) and reads, on a primary or on a standby:
--
--   SELECT * FROM vector_log
--    WHERE (txid, sequence) > ($1::xid8, $2) AND txid < pg_snapshot_xmin(pg_current_snapshot())
--    ORDER BY txid, sequence LIMIT n;
--
-- Every transaction below the snapshot's xmin has ended, so nothing can appear behind the position. What is read is in
-- the order of the transactions' beginnings: for one point, of which two transactions may write, the later txid is the
-- later writer as long as writers lock the row the embedding belongs to before they first write (services do).
-- A long transaction anywhere on the server holds the reader up; it makes it late, never wrong.
CREATE TABLE vector_log (
    sequence   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    txid       xid8 NOT NULL DEFAULT pg_current_xact_id(),
    collection text NOT NULL,
    point_id   uuid NOT NULL,
    operation  text NOT NULL CHECK (operation IN ('upsert', 'delete')),
    vector     real[],
    payload    jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT vector_log_upsert_has_vector CHECK ((operation = 'upsert') = (vector IS NOT NULL))
);
CREATE INDEX vector_log_order ON vector_log (txid, sequence);
CREATE INDEX vector_log_point ON vector_log (collection, point_id, sequence DESC);
CREATE INDEX vector_log_created_at ON vector_log (created_at);
COMMENT ON TABLE vector_log IS 'Ordered log of embeddings; read it by (txid, sequence) below the snapshot''s xmin.';
COMMENT ON COLUMN vector_log.txid IS 'The transaction that wrote the row; what makes reading in order possible.';
