-- What the services need to run tasks: leases, idempotency, conversations, tools and keys.
ALTER TABLE task_executions
    ADD COLUMN requested_mode   text,
    ADD COLUMN cell             text,
    ADD COLUMN context          jsonb NOT NULL DEFAULT '{}',
    -- A client's key for a submit that it may repeat, and the hash of what it submitted with it.
    ADD COLUMN idempotency_key  text,
    ADD COLUMN request_hash     text,
    -- The worker that runs the task, by the database's clock; attempt is its fencing token.
    ADD COLUMN lease_owner      text,
    ADD COLUMN lease_expires_at timestamptz,
    ADD COLUMN attempt          integer NOT NULL DEFAULT 0 CHECK (attempt >= 0),
    ADD COLUMN cancel_requested boolean NOT NULL DEFAULT false,
    ADD COLUMN embedding_state  text NOT NULL DEFAULT 'none'
               CONSTRAINT task_executions_embedding_state_known
               CHECK (embedding_state IN ('none', 'pending', 'done'));
CREATE UNIQUE INDEX task_executions_idempotency ON task_executions (tenant_id, user_id, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
-- Workers look for tasks that wait, or whose worker is gone; both sets are small.
CREATE INDEX task_executions_waiting ON task_executions (created_at) WHERE status = 'queued';
CREATE INDEX task_executions_running ON task_executions (lease_expires_at) WHERE status = 'running';
CREATE INDEX task_executions_unembedded ON task_executions (completed_at) WHERE embedding_state = 'pending';
CREATE INDEX task_executions_tenant_user ON task_executions (tenant_id, user_id, created_at DESC);

CREATE TABLE session_messages (
    id         uuid PRIMARY KEY DEFAULT uuid_generate_v4(),
    session_id uuid NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    seq        bigint GENERATED ALWAYS AS IDENTITY,
    role       text NOT NULL CHECK (role IN ('user', 'assistant', 'system')),
    content    text NOT NULL,
    task_id    uuid REFERENCES task_executions (id) ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    -- A task that is run again says nothing twice.
    CONSTRAINT session_messages_once UNIQUE (session_id, task_id, role)
);
CREATE INDEX session_messages_order ON session_messages (session_id, seq);

CREATE TABLE tool_modules (
    sha256      text NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    tenant_id   uuid NOT NULL,
    name        text NOT NULL,
    description text NOT NULL DEFAULT '',
    module      bytea NOT NULL,
    size        bigint NOT NULL CHECK (size > 0),
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, name)
);
CREATE INDEX tool_modules_sha256 ON tool_modules (sha256);

CREATE TABLE api_keys (
    id         uuid PRIMARY KEY DEFAULT uuid_generate_v4(),
    key_sha256 text NOT NULL UNIQUE CHECK (key_sha256 ~ '^[0-9a-f]{64}$'),
    tenant_id  uuid NOT NULL,
    user_id    text NOT NULL,
    tier       text NOT NULL DEFAULT 'free',
    scopes     text[] NOT NULL DEFAULT '{}',
    is_active  boolean NOT NULL DEFAULT true,
    expires_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX api_keys_tenant ON api_keys (tenant_id);
