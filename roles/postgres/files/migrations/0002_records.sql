-- What is kept about what ran: archives, events, audit, prompts, lessons and usage.
CREATE TABLE session_archives (
    id                uuid PRIMARY KEY DEFAULT uuid_generate_v4(),
    -- No foreign key: an archive outlives its session.
    session_id        text NOT NULL,
    user_id           uuid REFERENCES users (id) ON DELETE CASCADE,
    snapshot_data     jsonb NOT NULL,
    message_count     integer NOT NULL DEFAULT 0,
    snapshot_taken_at timestamptz NOT NULL DEFAULT now(),
    ttl_expires_at    timestamptz
);
CREATE INDEX session_archives_session_id ON session_archives (session_id);
CREATE INDEX session_archives_user_id ON session_archives (user_id);
CREATE INDEX session_archives_snapshot_taken_at ON session_archives (snapshot_taken_at DESC);

CREATE TABLE event_logs (
    id          uuid PRIMARY KEY DEFAULT uuid_generate_v4(),
    workflow_id text NOT NULL,
    task_id     uuid,
    type        text NOT NULL,
    agent_id    text,
    message     text,
    payload     jsonb NOT NULL DEFAULT '{}',
    "timestamp" timestamptz NOT NULL DEFAULT now(),
    seq         bigint,
    stream_id   text,
    created_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX event_logs_workflow_id ON event_logs (workflow_id);
CREATE INDEX event_logs_type ON event_logs (type);
CREATE INDEX event_logs_timestamp ON event_logs ("timestamp" DESC);
CREATE INDEX event_logs_workflow_seq ON event_logs (workflow_id, seq);
-- An event that is delivered twice is stored once.
CREATE UNIQUE INDEX event_logs_once ON event_logs (workflow_id, type, seq) WHERE seq IS NOT NULL;

CREATE TABLE audit_logs (
    id            uuid PRIMARY KEY DEFAULT uuid_generate_v4(),
    user_id       uuid REFERENCES users (id) ON DELETE SET NULL,
    action        text NOT NULL,
    resource_type text NOT NULL,
    resource_id   text,
    changes       jsonb NOT NULL DEFAULT '{}',
    ip_address    inet,
    user_agent    text,
    created_at    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX audit_logs_user_id ON audit_logs (user_id);
CREATE INDEX audit_logs_action ON audit_logs (action);
CREATE INDEX audit_logs_created_at ON audit_logs (created_at DESC);

CREATE TABLE prompts (
    id                 uuid PRIMARY KEY DEFAULT uuid_generate_v4(),
    name               text NOT NULL,
    version            integer NOT NULL CHECK (version > 0),
    content            text NOT NULL,
    is_active          boolean NOT NULL DEFAULT true,
    rollout_percentage integer NOT NULL DEFAULT 100 CHECK (rollout_percentage BETWEEN 0 AND 100),
    metadata           jsonb NOT NULL DEFAULT '{}',
    created_at         timestamptz NOT NULL DEFAULT now(),
    updated_at         timestamptz NOT NULL DEFAULT now(),
    UNIQUE (name, version)
);
CREATE TRIGGER prompts_updated_at BEFORE UPDATE ON prompts FOR EACH ROW EXECUTE FUNCTION set_updated_at();

CREATE TABLE learning_cases (
    id           uuid PRIMARY KEY DEFAULT uuid_generate_v4(),
    user_id      uuid REFERENCES users (id) ON DELETE CASCADE,
    task_id      uuid REFERENCES task_executions (id) ON DELETE SET NULL,
    input_hash   text NOT NULL UNIQUE,
    action_taken jsonb NOT NULL,
    outcome      jsonb,
    reward       numeric(6, 4) NOT NULL DEFAULT 0,
    created_at   timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX learning_cases_user_reward ON learning_cases (user_id, reward DESC);

CREATE TABLE token_usage (
    id                uuid PRIMARY KEY DEFAULT uuid_generate_v4(),
    user_id           uuid REFERENCES users (id) ON DELETE CASCADE,
    task_id           uuid REFERENCES task_executions (id) ON DELETE CASCADE,
    agent_id          text,
    provider          text NOT NULL,
    model             text NOT NULL,
    prompt_tokens     integer NOT NULL DEFAULT 0,
    completion_tokens integer NOT NULL DEFAULT 0,
    total_tokens      integer GENERATED ALWAYS AS (prompt_tokens + completion_tokens) STORED,
    cost_usd          numeric(12, 6) NOT NULL DEFAULT 0,
    created_at        timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX token_usage_user_id ON token_usage (user_id);
CREATE INDEX token_usage_task_id ON token_usage (task_id);
CREATE INDEX token_usage_provider_model ON token_usage (provider, model);
CREATE INDEX token_usage_created_at ON token_usage (created_at DESC);

CREATE TABLE usage_daily_aggregates (
    id             uuid PRIMARY KEY DEFAULT uuid_generate_v4(),
    user_id        uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    date           date NOT NULL,
    total_tasks    integer NOT NULL DEFAULT 0,
    succeeded      integer NOT NULL DEFAULT 0,
    failed         integer NOT NULL DEFAULT 0,
    total_tokens   bigint NOT NULL DEFAULT 0,
    total_cost_usd numeric(14, 6) NOT NULL DEFAULT 0,
    model_usage    jsonb NOT NULL DEFAULT '{}',
    created_at     timestamptz NOT NULL DEFAULT now(),
    updated_at     timestamptz NOT NULL DEFAULT now(),
    UNIQUE (user_id, date)
);
CREATE TRIGGER usage_daily_aggregates_updated_at BEFORE UPDATE ON usage_daily_aggregates
    FOR EACH ROW EXECUTE FUNCTION set_updated_at();
