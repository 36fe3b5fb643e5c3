-- Users, their sessions, and what ran for them.
CREATE EXTENSION IF NOT EXISTS "uuid-ossp";
CREATE EXTENSION IF NOT EXISTS pg_trgm;
CREATE EXTENSION IF NOT EXISTS btree_gin;

CREATE FUNCTION set_updated_at() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at := now();
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION set_updated_at() IS 'Row trigger: keeps updated_at, whatever the client sends.';

CREATE TABLE users (
    id          uuid PRIMARY KEY DEFAULT uuid_generate_v4(),
    external_id text NOT NULL UNIQUE,
    email       text,
    tenant_id   uuid,
    metadata    jsonb NOT NULL DEFAULT '{}',
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX users_tenant_id ON users (tenant_id);
CREATE TRIGGER users_updated_at BEFORE UPDATE ON users FOR EACH ROW EXECUTE FUNCTION set_updated_at();

CREATE TABLE sessions (
    id           uuid PRIMARY KEY DEFAULT uuid_generate_v4(),
    user_id      uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    tenant_id    uuid,
    context      jsonb NOT NULL DEFAULT '{}',
    token_budget integer NOT NULL DEFAULT 10000 CHECK (token_budget >= 0),
    tokens_used  integer NOT NULL DEFAULT 0 CHECK (tokens_used >= 0),
    expires_at   timestamptz,
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX sessions_user_id ON sessions (user_id);
CREATE INDEX sessions_expires_at ON sessions (expires_at);
CREATE TRIGGER sessions_updated_at BEFORE UPDATE ON sessions FOR EACH ROW EXECUTE FUNCTION set_updated_at();

CREATE TABLE task_executions (
    id                uuid PRIMARY KEY DEFAULT uuid_generate_v4(),
    workflow_id       text NOT NULL UNIQUE,
    user_id           uuid REFERENCES users (id) ON DELETE SET NULL,
    -- A client's own name for a session; it need not be that of a row in sessions.
    session_id        text,
    tenant_id         uuid,
    query             text NOT NULL,
    mode              text,
    status            text NOT NULL DEFAULT 'queued'
                      CONSTRAINT task_executions_status_known
                      CHECK (status IN ('queued', 'running', 'completed', 'failed', 'cancelled', 'timeout', 'paused')),
    started_at        timestamptz,
    completed_at      timestamptz,
    result            text,
    error_message     text,
    model_used        text,
    provider          text,
    total_tokens      integer NOT NULL DEFAULT 0,
    prompt_tokens     integer NOT NULL DEFAULT 0,
    completion_tokens integer NOT NULL DEFAULT 0,
    total_cost_usd    numeric(12, 6) NOT NULL DEFAULT 0,
    duration_ms       bigint,
    agents_used       integer NOT NULL DEFAULT 0,
    tools_invoked     integer NOT NULL DEFAULT 0,
    cache_hits        integer NOT NULL DEFAULT 0,
    complexity_score  numeric(3, 2),
    metadata          jsonb NOT NULL DEFAULT '{}',
    response          jsonb,
    created_at        timestamptz NOT NULL DEFAULT now(),
    updated_at        timestamptz NOT NULL DEFAULT now()
);
-- workflow_id has the index of its UNIQUE constraint.
CREATE INDEX task_executions_user_session ON task_executions (user_id, session_id);
CREATE INDEX task_executions_created_at ON task_executions (created_at DESC);
CREATE INDEX task_executions_status ON task_executions (status);
CREATE INDEX task_executions_response ON task_executions USING gin (response);
CREATE TRIGGER task_executions_updated_at BEFORE UPDATE ON task_executions
    FOR EACH ROW EXECUTE FUNCTION set_updated_at();

CREATE TABLE agent_executions (
    id                uuid PRIMARY KEY DEFAULT uuid_generate_v4(),
    task_execution_id uuid NOT NULL REFERENCES task_executions (id) ON DELETE CASCADE,
    agent_id          text NOT NULL,
    execution_order   integer NOT NULL DEFAULT 0,
    input             text NOT NULL,
    output            text,
    mode              text,
    state             text NOT NULL DEFAULT 'pending',
    error_message     text,
    tokens_used       integer NOT NULL DEFAULT 0,
    cost_usd          numeric(12, 6) NOT NULL DEFAULT 0,
    model_used        text,
    duration_ms       bigint,
    metadata          jsonb NOT NULL DEFAULT '{}',
    created_at        timestamptz NOT NULL DEFAULT now(),
    updated_at        timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX agent_executions_task ON agent_executions (task_execution_id);
CREATE INDEX agent_executions_created_at ON agent_executions (created_at DESC);
CREATE INDEX agent_executions_state ON agent_executions (state);
CREATE TRIGGER agent_executions_updated_at BEFORE UPDATE ON agent_executions
    FOR EACH ROW EXECUTE FUNCTION set_updated_at();

CREATE TABLE tool_executions (
    id                 uuid PRIMARY KEY DEFAULT uuid_generate_v4(),
    agent_execution_id uuid REFERENCES agent_executions (id) ON DELETE CASCADE,
    task_execution_id  uuid REFERENCES task_executions (id) ON DELETE CASCADE,
    tool_name          text NOT NULL,
    input_params       jsonb NOT NULL DEFAULT '{}',
    output             jsonb,
    success            boolean NOT NULL,
    error              text,
    duration_ms        bigint,
    sandboxed          boolean NOT NULL DEFAULT true,
    executed_at        timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX tool_executions_tool_name ON tool_executions (tool_name);
CREATE INDEX tool_executions_executed_at ON tool_executions (executed_at DESC);
CREATE INDEX tool_executions_task ON tool_executions (task_execution_id);
CREATE INDEX tool_executions_agent ON tool_executions (agent_execution_id);
CREATE INDEX tool_executions_success ON tool_executions (success);
