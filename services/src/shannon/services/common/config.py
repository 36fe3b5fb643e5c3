# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration: one file, C(config/shannon.yaml), checked as a whole when a service starts.

Every key has a type, a range and a default here; the file overrides the defaults, and an unknown key is refused, so
that a misspelt one can't be ignored in silence. Circuit breakers alone have a third source, the environment (see
:mod:`.breakers`). The section C(deployment) is what the role C(services) derives from the inventory's topology.
"""

from __future__ import annotations

import pathlib
import typing as t

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .deployment import Deployment
from .values import Duration, Size

Port = t.Annotated[int, Field(ge=1, le=65535)]
Ratio = t.Annotated[float, Field(ge=0, le=1)]


class ConfigError(Exception):
    """The configuration can't be used; C(problems) has one sentence for each finding."""

    def __init__(self, source: str, problems: t.Sequence[str]) -> None:
        self.problems = list(problems)
        super().__init__(f"{source} can't be used:\n" + "\n".join(f"  {problem}" for problem in problems))


class Section(BaseModel):
    """A part of the file: it can't be changed once read, and takes no unknown key."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)


class Service(Section):
    """What holds for every service."""

    environment: t.Literal["production", "staging", "development", "test"] = "production"
    log_level: t.Literal["debug", "info", "warning", "error"] = "info"
    graceful_timeout: t.Annotated[Duration, Field(gt=0, le=600)] = 60
    read_timeout: t.Annotated[Duration, Field(gt=0, le=600)] = 30
    write_timeout: t.Annotated[Duration, Field(gt=0, le=600)] = 30


class ApiKey(Section):
    """A key by its SHA-256, so that the file can't be used to log in."""

    id: t.Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    sha256: t.Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    tenant_id: t.Annotated[str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
    user_id: t.Annotated[str, Field(pattern=r"^[A-Za-z0-9:_.@-]{1,128}$")]
    tier: t.Literal["free", "pro", "max", "enterprise", "admin"] = "free"


class Jwt(Section):
    """Bearer tokens. HS256 takes the secret C(gateway_jwt), RS256 a public key."""

    algorithm: t.Literal["HS256", "RS256"] = "HS256"
    public_key_file: str = ""
    issuer: str = ""
    audience: str = ""
    leeway: t.Annotated[Duration, Field(ge=0, le=300)] = 10


class Auth(Section):
    """Who may use the gateway."""

    api_keys: list[ApiKey] = []
    jwt: Jwt = Jwt()

    @model_validator(mode="after")
    def _ids_once(self) -> Auth:
        ids = [key.id for key in self.api_keys]
        if len(set(ids)) != len(ids):
            raise ValueError("api_keys: two keys have the same id")
        return self


class Tier(Section):
    """Requests that an API key or user may make in a window."""

    minute: t.Annotated[int, Field(ge=1)]
    hour: t.Annotated[int, Field(ge=1)]
    day: t.Annotated[int, Field(ge=1)]


#: Seed facts 5.
TIERS = {
    "free": Tier(minute=60, hour=1000, day=10000),
    "pro": Tier(minute=200, hour=5000, day=50000),
    "max": Tier(minute=300, hour=10000, day=100000),
    "enterprise": Tier(minute=500, hour=20000, day=200000),
    "admin": Tier(minute=1000, hour=100000, day=1000000),
}


class RateLimits(Section):
    """Limits by tier; a tier that the file does not name keeps the built-in ones."""

    enabled: bool = True
    tiers: dict[str, Tier] = TIERS
    redis_timeout: t.Annotated[Duration, Field(gt=0, le=5)] = 0.05


class Gateway(Section):
    """The HTTP door of a region."""

    port: Port = 8080
    max_body: t.Annotated[Size, Field(ge=1024, le=2**30)] = 2**20
    max_tool_body: t.Annotated[Size, Field(ge=1024, le=2**30)] = 12 * 2**20
    max_streams: t.Annotated[int, Field(ge=1, le=100000)] = 1000
    stream_ping: t.Annotated[Duration, Field(gt=0, le=60)] = 10
    stream_poll: t.Annotated[Duration, Field(gt=0, le=10)] = 0.5
    stream_max: t.Annotated[Duration, Field(gt=0)] = 3600
    request_timeout: t.Annotated[Duration, Field(gt=0, le=300)] = 10
    forward_timeout: t.Annotated[Duration, Field(gt=0, le=300)] = 15
    readiness_interval: t.Annotated[Duration, Field(gt=0, le=60)] = 1
    idempotency_ttl: t.Annotated[Duration, Field(gt=0)] = 86400


class Routing(Section):
    """Which cell a tenant lives in: what is said here, else a stable hash over all cells."""

    tenants: dict[str, str] = {}


class Orchestrator(Section):
    """Runs tasks."""

    port: Port = 50052
    admin_port: Port = 8081
    metrics_port: Port = 2112
    concurrency: t.Annotated[int, Field(ge=1, le=1000)] = 8
    lease: t.Annotated[Duration, Field(ge=5, le=3600)] = 60
    max_attempts: t.Annotated[int, Field(ge=1, le=100)] = 5
    task_timeout: t.Annotated[Duration, Field(gt=0, le=86400)] = 300
    step_timeout: t.Annotated[Duration, Field(gt=0, le=3600)] = 60
    poll_interval: t.Annotated[Duration, Field(gt=0, le=60)] = 1
    cancel_interval: t.Annotated[Duration, Field(gt=0, le=60)] = 1
    max_parallel_steps: t.Annotated[int, Field(ge=1, le=100)] = 5
    max_steps: t.Annotated[int, Field(ge=1, le=100)] = 12
    max_query: t.Annotated[int, Field(ge=1, le=1_000_000)] = 32000
    max_context: t.Annotated[Size, Field(ge=2, le=2**24)] = 64 * 2**10
    embedding_retry: t.Annotated[Duration, Field(gt=0, le=3600)] = 10


class Upstream(Section):
    """An OpenAI-compatible provider; its key is the secret C(llm_upstream_key)."""

    base_url: t.Annotated[str, Field(pattern=r"^(https?://.+)?$")] = ""
    timeout: t.Annotated[Duration, Field(gt=0, le=600)] = 60
    connect_timeout: t.Annotated[Duration, Field(gt=0, le=60)] = 5


class LlmService(Section):
    """Completions and embeddings."""

    port: Port = 8000
    provider: t.Literal["embedded", "openai"] = "embedded"
    model: t.Annotated[str, Field(min_length=1, max_length=200)] = "shannon-embedded-1"
    embedding_model: t.Annotated[str, Field(min_length=1, max_length=200)] = "shannon-hash-1"
    upstream: Upstream = Upstream()
    cache_ttl: t.Annotated[Duration, Field(ge=0)] = 3600
    cache_size: t.Annotated[int, Field(ge=0, le=10_000_000)] = 2048
    semantic_cache: bool = True
    semantic_threshold: Ratio = 0.97
    semantic_size: t.Annotated[int, Field(ge=0, le=100_000)] = 512
    redis_timeout: t.Annotated[Duration, Field(gt=0, le=5)] = 0.1
    rate_limit: t.Annotated[int, Field(ge=0)] = 0
    rate_window: t.Annotated[Duration, Field(gt=0)] = 60
    max_body: t.Annotated[Size, Field(ge=1024, le=2**30)] = 2**20
    max_texts: t.Annotated[int, Field(ge=1, le=10000)] = 256
    max_text: t.Annotated[int, Field(ge=1, le=10_000_000)] = 64000
    max_tokens: t.Annotated[int, Field(ge=1, le=1_000_000)] = 4096

    @model_validator(mode="after")
    def _upstream_named(self) -> LlmService:
        if self.provider == "openai" and not self.upstream.base_url:
            raise ValueError("provider is openai, but upstream.base_url is empty; say where the provider is")
        return self


class AgentCore(Section):
    """Runs tools in a sandbox (seed facts 7)."""

    port: Port = 50051
    metrics_port: Port = 2113
    state_directory: str = "/var/lib/shannon/agent-core"
    concurrency: t.Annotated[int, Field(ge=1, le=256)] = 8
    memory: t.Annotated[Size, Field(ge=2**16, le=512 * 2**20)] = 64 * 2**20
    max_memory: t.Annotated[Size, Field(ge=2**16, le=512 * 2**20)] = 512 * 2**20
    timeout: t.Annotated[Duration, Field(gt=0, le=60)] = 10
    max_timeout: t.Annotated[Duration, Field(gt=0, le=60)] = 60
    fuel: t.Annotated[int, Field(ge=1000)] = 2_000_000_000
    max_fuel: t.Annotated[int, Field(ge=1000)] = 20_000_000_000
    max_module: t.Annotated[Size, Field(ge=8, le=2**28)] = 8 * 2**20
    max_input: t.Annotated[Size, Field(ge=1, le=2**26)] = 2**20
    max_output: t.Annotated[Size, Field(ge=1, le=2**26)] = 2**20
    cached_modules: t.Annotated[int, Field(ge=1, le=10000)] = 64
    rate: t.Annotated[float, Field(gt=0, le=100000)] = 20
    breaker_error_rate: Ratio = 0.5
    breaker_window: t.Annotated[Duration, Field(gt=0, le=3600)] = 30
    breaker_requests: t.Annotated[int, Field(ge=1, le=100000)] = 20


class Session(Section):
    """Conversations."""

    ttl: t.Annotated[Duration, Field(gt=0)] = 720 * 3600
    max_history: t.Annotated[int, Field(ge=1, le=100000)] = 1000
    context_messages: t.Annotated[int, Field(ge=0, le=1000)] = 10


class Breaker(Section):
    """Overrides of one kind's settings; what is left out keeps the built-in default (seed facts 1)."""

    max_requests: t.Annotated[int, Field(ge=1, le=10000)] | None = None
    interval: t.Annotated[Duration, Field(ge=0, le=86400)] | None = None
    timeout: t.Annotated[Duration, Field(gt=0, le=86400)] | None = None
    max_failures: t.Annotated[int, Field(ge=1, le=100000)] | None = None
    success_threshold: t.Annotated[int, Field(ge=1, le=10000)] | None = None


class Breakers(Section):
    """Circuit breakers by kind."""

    redis: Breaker = Breaker()
    database: Breaker = Breaker()
    grpc: Breaker = Breaker()
    grpc_connection: Breaker = Breaker()
    http: Breaker = Breaker()


class Threshold(Section):
    """When a level holds: when any of these is reached; 0 switches one off (seed facts 2)."""

    circuit_breakers_open: t.Annotated[int, Field(ge=0, le=100)]
    critical_dependencies_down: t.Annotated[int, Field(ge=0, le=100)]
    non_critical_dependencies_down: t.Annotated[int, Field(ge=0, le=100)]
    error_rate: Ratio
    latency: t.Annotated[Duration, Field(ge=0, le=3600)]


class Thresholds(Section):
    """The three levels."""

    minor: Threshold = Threshold(
        circuit_breakers_open=1,
        critical_dependencies_down=0,
        non_critical_dependencies_down=1,
        error_rate=0.05,
        latency=1.0,
    )
    moderate: Threshold = Threshold(
        circuit_breakers_open=2,
        critical_dependencies_down=1,
        non_critical_dependencies_down=2,
        error_rate=0.15,
        latency=2.0,
    )
    severe: Threshold = Threshold(
        circuit_breakers_open=3,
        critical_dependencies_down=2,
        non_critical_dependencies_down=3,
        error_rate=0.30,
        latency=5.0,
    )


class PartialResults(Section):
    """Which share of a workflow's components must succeed."""

    simple: Ratio = 1.0
    standard: Ratio = 0.5
    complex: Ratio = 0.6
    agent_dag: Ratio = 0.4
    other: Ratio = 0.5
    timeout_override: t.Annotated[Duration, Field(gt=0, le=600)] = 5
    max_wait: t.Annotated[Duration, Field(gt=0, le=600)] = 30


class Degradation(Section):
    """Levels, partial results and fallbacks."""

    enabled: bool = True
    check_interval: t.Annotated[Duration, Field(gt=0, le=3600)] = 30
    degraded_check_interval: t.Annotated[Duration, Field(gt=0, le=3600)] = 5
    thresholds: Thresholds = Thresholds()
    partial_results: PartialResults = PartialResults()
    fallback_behaviors: dict[str, t.Literal["proceed", "degrade", "cache", "skip", "fail"]] = {}


class Check(Section):
    """The health check of one dependency."""

    critical: bool = True
    timeout: t.Annotated[Duration, Field(gt=0, le=60)] = 5
    interval: t.Annotated[Duration, Field(gt=0, le=3600)] = 30


class Checks(Section):
    """Health checks. Redis and Qdrant are not critical: tasks go on without them."""

    redis: Check = Check(critical=False)
    database: Check = Check()
    agent_core: Check = Check()
    llm_service: Check = Check(critical=False, interval=60)
    qdrant: Check = Check(critical=False)


class Health(Section):
    """Health checks."""

    checks: Checks = Checks()
    slow: t.Annotated[Duration, Field(gt=0, le=60)] = 0.1


class Database(Section):
    """The database client (seed facts 3)."""

    name: str = "shannon"
    user: str = "shannon"
    max_connections: t.Annotated[int, Field(ge=1, le=1000)] = 25
    idle_connections: t.Annotated[int, Field(ge=0, le=1000)] = 5
    max_lifetime: t.Annotated[Duration, Field(gt=0)] = 300
    connect_timeout: t.Annotated[Duration, Field(ge=1, le=60)] = 3
    statement_timeout: t.Annotated[Duration, Field(gt=0, le=600)] = 15
    acquire_timeout: t.Annotated[Duration, Field(gt=0, le=60)] = 5
    ping_timeout: t.Annotated[Duration, Field(gt=0, le=60)] = 5
    ping_interval: t.Annotated[Duration, Field(gt=0, le=600)] = 30
    queue_size: t.Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    queue_workers: t.Annotated[int, Field(ge=1, le=100)] = 10
    batch_size: t.Annotated[int, Field(ge=1, le=10000)] = 100
    flush_interval: t.Annotated[Duration, Field(gt=0, le=60)] = 1
    drain_timeout: t.Annotated[Duration, Field(gt=0, le=600)] = 10
    spool_directory: str = "/var/lib/shannon/orchestrator/spool"
    spool_size: t.Annotated[Size, Field(ge=2**20)] = 2**30

    @model_validator(mode="after")
    def _idle_within(self) -> Database:
        if self.idle_connections > self.max_connections:
            raise ValueError(
                f"idle_connections is {self.idle_connections}, more than max_connections ({self.max_connections})"
            )
        return self


class Redis(Section):
    """The cell's Redis, through the data proxy."""

    user: str = "app"
    connect_timeout: t.Annotated[Duration, Field(gt=0, le=60)] = 1
    timeout: t.Annotated[Duration, Field(gt=0, le=60)] = 1
    max_connections: t.Annotated[int, Field(ge=1, le=10000)] = 50


class Embeddings(Section):
    """Texts to vectors, through llm-service (seed facts 6)."""

    dimension: t.Annotated[int, Field(ge=1, le=65536)] = 1536
    timeout: t.Annotated[Duration, Field(gt=0, le=600)] = 10
    cache_ttl: t.Annotated[Duration, Field(ge=0)] = 3600
    max_lru: t.Annotated[int, Field(ge=0, le=10_000_000)] = 4096
    chunk_tokens: t.Annotated[int, Field(ge=1, le=1_000_000)] = 4000
    chunk_overlap: t.Annotated[int, Field(ge=0, le=1_000_000)] = 400
    chunk_minimum: t.Annotated[int, Field(ge=1, le=1_000_000)] = 200

    @model_validator(mode="after")
    def _overlap_within(self) -> Embeddings:
        if self.chunk_overlap >= self.chunk_tokens:
            raise ValueError(f"chunk_overlap is {self.chunk_overlap}, not below chunk_tokens ({self.chunk_tokens})")
        return self


class Vector(Section):
    """Search in Qdrant (seed facts 6)."""

    top_k: t.Annotated[int, Field(ge=1, le=1000)] = 10
    threshold: t.Annotated[float, Field(ge=-1, le=1)] = 0.5
    timeout: t.Annotated[Duration, Field(gt=0, le=600)] = 10
    mmr_enabled: bool = True
    mmr_lambda: Ratio = 0.7
    mmr_pool_multiplier: t.Annotated[int, Field(ge=1, le=100)] = 3


class VectorIndexer(Section):
    """Follows vector_log."""

    metrics_port: Port = 2114
    state_directory: str = "/var/lib/shannon/vector-indexer"
    batch: t.Annotated[int, Field(ge=1, le=10000)] = 500
    interval: t.Annotated[Duration, Field(gt=0, le=60)] = 0.2
    lease: t.Annotated[int, Field(ge=2, le=60)] = 5
    timeout: t.Annotated[Duration, Field(gt=0, le=60)] = 2
    retry_max: t.Annotated[Duration, Field(gt=0, le=60)] = 5


class Streaming(Section):
    """Live events in Redis (seed facts 5)."""

    ring_capacity: t.Annotated[int, Field(ge=16, le=1_000_000)] = 256
    ttl: t.Annotated[Duration, Field(gt=0)] = 86400


class EdgeAgent(Section):
    """Takes the routing control from the registry into an edge's HAProxy, and holds requests while their cell moves."""

    socket: str = "/run/shannon-edge/admin.sock"
    state_file: str = "/var/lib/shannon-edge/routing.json"
    server_states: str = "/var/lib/shannon-edge/servers.state"
    hold_map: str = "/etc/shannon/edge/hold.map"
    hold_limit: t.Annotated[Duration, Field(gt=0, le=300)] = 15
    metrics_port: Port = 2115
    interval: t.Annotated[Duration, Field(gt=0, le=60)] = 1


class Config(Section):
    """All of it."""

    service: Service = Service()
    auth: Auth = Auth()
    rate_limits: RateLimits = RateLimits()
    gateway: Gateway = Gateway()
    routing: Routing = Routing()
    orchestrator: Orchestrator = Orchestrator()
    llm_service: LlmService = LlmService()
    agent_core: AgentCore = AgentCore()
    session: Session = Session()
    circuit_breakers: Breakers = Breakers()
    degradation: Degradation = Degradation()
    health: Health = Health()
    database: Database = Database()
    redis: Redis = Redis()
    embeddings: Embeddings = Embeddings()
    vector: Vector = Vector()
    vector_indexer: VectorIndexer = VectorIndexer()
    streaming: Streaming = Streaming()
    edge_agent: EdgeAgent = EdgeAgent()
    deployment: Deployment = Deployment()

    @model_validator(mode="after")
    def _tenants_have_cells(self) -> Config:
        known = {cell.name for cell in self.deployment.cells}
        for tenant, cell in self.routing.tenants.items():
            if cell not in known:
                listed = ", ".join(sorted(known)) or "none given"
                raise ValueError(f"routing.tenants.{tenant} is {cell!r}, which is no cell ({listed})")
        return self


def load(path: str | pathlib.Path) -> Config:
    """Read and check a configuration file.

    :raises ConfigError: it can't be read, is no YAML, or has values that are wrong: all of them are named.
    """
    source = str(path)
    try:
        raw = yaml.safe_load(pathlib.Path(path).read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(source, [f"it can't be read: {exc.strerror or exc}"]) from exc
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise ConfigError(source, [f"it is no YAML: {' '.join(str(exc).split())}"]) from exc
    return parse(raw, source)


def parse(raw: t.Any, source: str = "the configuration") -> Config:
    """Check a configuration that was read already.

    :raises ConfigError: see :func:`load`.
    """
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise ConfigError(source, [f"it is a {type(raw).__name__}, not a mapping of sections"])
    try:
        return Config.model_validate(raw)
    except ValidationError as exc:
        raise ConfigError(source, [_sentence(finding) for finding in exc.errors()]) from exc


def _sentence(finding: t.Mapping[str, t.Any]) -> str:
    key = ".".join(str(part) for part in finding["loc"]) or "the file"
    if finding["type"] == "extra_forbidden":
        return f"{key}: this key is unknown"
    if finding["type"] == "missing":
        return f"{key}: this key is missing"
    message = finding["msg"].removeprefix("Value error, ")
    value = finding["input"]
    shown = f" is {value!r}" if isinstance(value, (str, int, float, bool, type(None))) else ""
    return f"{key}{shown}: {message[:1].lower()}{message[1:]}"
