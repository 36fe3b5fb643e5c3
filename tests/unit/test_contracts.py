"""What every role, module, playbook and inventory has to have, whoever writes it."""

from __future__ import annotations

import ipaddress
import re
import subprocess
import typing as t
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted(path for path in (ROOT / "roles").iterdir() if path.is_dir())
MODULES = sorted((ROOT / "plugins" / "modules").glob("*.py"))
SCENARIOS = sorted(path.parent for path in (ROOT / "molecule").glob("*/molecule.yml"))
PLAYBOOKS = sorted((ROOT / "playbooks").glob("*.yml"))
PAGES = sorted(
    {path for glob in ("*.md", "[a-z]*/README.md", "[a-z]*/*/README.md", "docs/**/*.md") for path in ROOT.glob(glob)}
)
INVENTORIES = [ROOT / "inventories" / "lab", ROOT / "inventories" / "active_passive", ROOT / "molecule" / "inventory"]
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@cache
def load(path: Path) -> t.Any:
    return yaml.load(path.read_text(), Loader=Loader)


def normal(value: t.Any) -> t.Any:
    """Templates compare as text, whatever their line breaks."""
    return re.sub(r"\s+", " ", value).strip() if isinstance(value, str) else value


@pytest.mark.parametrize("role", ROLES, ids=lambda path: path.name)
class TestRole:
    @pytest.fixture
    def spec(self, role: Path) -> dict[str, t.Any]:
        return load(role / "meta" / "argument_specs.yml")["argument_specs"]["main"]

    @pytest.fixture
    def options(self, spec: dict[str, t.Any]) -> dict[str, dict[str, t.Any]]:
        return spec["options"]

    def test_argument_specs_and_defaults_are_the_same(self, role: Path, options: dict[str, t.Any]) -> None:
        defaults = load(role / "defaults" / "main.yml")
        documented = {name: normal(option["default"]) for name, option in options.items() if "default" in option}
        assert documented == {name: normal(value) for name, value in defaults.items()}

    def test_variables_carry_the_roles_name(self, role: Path, options: dict[str, t.Any]) -> None:
        assert [name for name in options if not name.startswith(f"{role.name}_")] == []
        path = role / "vars" / "main.yml"
        internal = load(path) if path.exists() else {}
        assert [name for name in internal if not name.startswith(f"__{role.name}_")] == []

    def test_every_option_is_described_and_typed(self, role: Path, spec: dict[str, t.Any]) -> None:
        assert spec["short_description"] and isinstance(spec["description"], list)
        assert not spec["short_description"].endswith(".")
        for name, option in spec["options"].items():
            assert option["description"], name
            assert option["type"] in ("bool", "dict", "float", "int", "list", "path", "raw", "str"), name
            assert option["type"] != "list" or "elements" in option, name

    def test_what_may_be_secret_is_marked(self, role: Path, options: dict[str, t.Any]) -> None:
        secret = [name for name in options if name.endswith(("_password", "_api_key", "_secret", "_token"))]
        public = {"etcd_cluster_token"}
        assert [name for name in secret if name not in public and not options[name].get("no_log")] == []

    def test_every_option_is_used(self, role: Path, options: dict[str, t.Any]) -> None:
        folders = ("defaults", "vars", "tasks", "templates", "handlers")
        files = [path for folder in folders for path in (role / folder).rglob("*") if path.is_file()]
        # Comments and a default's own name are no use.
        lines = [line for path in files for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
        text = "\n".join(re.sub(r"^[a-z0-9_]+:", "", line) for line in lines)
        assert [name for name in options if not re.search(rf"\b{name}\b", text)] == []

    def test_it_has_a_readme_and_metadata(self, role: Path) -> None:
        assert (role / "README.md").exists()
        info = load(role / "meta" / "main.yml")["galaxy_info"]
        assert info["license"] == "GPL-3.0-or-later" and info["min_ansible_version"] and info["description"]
        releases = {platform["name"]: set(platform["versions"]) for platform in info["platforms"]}
        assert releases == {"Debian": {"bookworm"}, "Ubuntu": {"jammy", "noble"}}

    def test_it_has_a_scenario_with_tests(self, role: Path) -> None:
        assert list((ROOT / "molecule" / role.name / "tests").glob("test_*.py"))

    def test_main_fits_a_screen(self, role: Path) -> None:
        assert len((role / "tasks" / "main.yml").read_text().splitlines()) <= 40

    def test_site_deploys_it(self, role: Path) -> None:
        deployed = {entry["role"] for play in load(ROOT / "playbooks" / "site.yml") for entry in play.get("roles", [])}
        assert f"shannon.resilience.{role.name}" in deployed


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_a_module_documents_check_and_diff_mode(module: Path) -> None:
    text = module.read_text()
    found = re.search(r'^DOCUMENTATION = r"""\n(.*?)^"""', text, re.DOTALL | re.MULTILINE)
    assert found, "DOCUMENTATION"
    documentation = yaml.load(found.group(1), Loader=Loader)
    assert documentation["module"] == module.stem
    assert {"check_mode", "diff_mode"} <= set(documentation["attributes"])
    assert "EXAMPLES = r" in text and "RETURN = r" in text
    assert text.startswith("#!/usr/bin/python\n")


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_a_module_returns_nothing_that_ansible_takes_for_its_own(module: Path) -> None:
    found = re.search(r'^RETURN = r"""\n(.*?)^"""', module.read_text(), re.DOTALL | re.MULTILINE)
    assert found, "RETURN"
    # A non-empty `unreachable`, say, makes Ansible give the host up.
    reserved = {
        "failed",
        "invocation",
        "exception",
        "skipped",
        "unreachable",
        "ansible_facts",
        "deprecations",
        "warnings",
    }
    assert reserved & set(yaml.load(found.group(1), Loader=Loader) or {}) == set()


def test_the_action_group_lists_exactly_the_modules() -> None:
    listed = load(ROOT / "meta" / "runtime.yml")["action_groups"]["all"]
    assert listed == [module.stem for module in MODULES]


@pytest.mark.parametrize("path", sorted((ROOT / "plugins").rglob("*.py")), ids=lambda path: path.stem)
def test_a_plugin_carries_its_licence(path: Path) -> None:
    head = path.read_text()[:400]
    assert "GNU General Public License v3.0+" in head and "SPDX-License-Identifier: GPL-3.0-or-later" in head


@pytest.mark.parametrize("path", sorted((ROOT / "plugins" / "module_utils").glob("*.py")), ids=lambda path: path.stem)
def test_the_library_imports_no_ansible(path: Path) -> None:
    assert not re.search(r"^\s*(from|import) ansible", path.read_text(), re.MULTILINE)


def texts() -> t.Iterator[tuple[Path, str]]:
    """The text files that git has or would take."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    for name in filter(None, done.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and path.suffix not in (".svg", ".png"):
            yield path.relative_to(ROOT), path.read_text()


def test_only_the_labs_definition_knows_its_addresses() -> None:
    subnet = ipaddress.ip_network(load(ROOT / "lab" / "definition.json")["network"]["subnet"])
    address = re.compile(r"\b\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}\b")

    def inside(text: str) -> bool:
        try:
            return ipaddress.ip_address(text) in subnet
        except ValueError:
            return False

    knowing = [
        str(path)
        for path, text in texts()
        if path.parts[0] != "tests" and any(inside(match) for match in address.findall(text))
    ]
    assert knowing == ["lab/definition.json"]


def test_the_secrets_of_an_inventory_are_ignored_by_git() -> None:
    assert [str(path) for path, text in texts() if ".secrets" in path.parts or "PRIVATE KEY-----\n" in text] == []


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda path: path.name)
def test_a_scenario_converges_and_verifies(scenario: Path) -> None:
    assert (scenario / "converge.yml").exists()
    assert list((scenario / "tests").glob("test_*.py"))


def groups_of(inventory: Path) -> dict[str, set[str]]:
    """The groups of an inventory to their hosts, children counted."""
    tree = load(inventory / "hosts.yml")
    tree = tree["all"]["children"] if set(tree) == {"all"} else tree

    def hosts(name: str) -> set[str]:
        group = tree.get(name) or {}
        return set(group.get("hosts") or {}).union(*(hosts(child) for child in group.get("children") or {}))

    return {name: hosts(name) for name in tree}


@pytest.mark.parametrize("inventory", INVENTORIES, ids=lambda path: f"{path.parent.name}-{path.name}")
class TestInventory:
    def test_each_host_is_in_exactly_one_region(self, inventory: Path) -> None:
        groups = groups_of(inventory)
        sites = [hosts for name, hosts in groups.items() if name.startswith("region_") or name == "witness"]
        every = set().union(*groups.values())
        assert {host: sum(host in site for site in sites) for host in every} == dict.fromkeys(every, 1)

    def test_its_regions_are_those_of_its_topology(self, inventory: Path) -> None:
        topology = load(inventory / "group_vars" / "all" / "topology.yml")
        regions = {name.removeprefix("region_") for name in groups_of(inventory) if name.startswith("region_")}
        assert set(topology["regions"]) == regions
        assert {cell["home"] for cell in topology["cells"].values()} <= regions

    def test_every_component_that_has_a_role_has_hosts(self, inventory: Path) -> None:
        groups = groups_of(inventory)
        # These run where others do: the region agent beside PostgreSQL and Redis; backups have a group.
        components = {role.name for role in ROLES} - {"common", "pki", "services", "region_agent", "backup"}
        assert {name for name in components if not groups.get(name)} == set()


def test_the_example_has_the_shape_of_the_lab() -> None:
    lab, example = (groups_of(path) for path in INVENTORIES[:2])
    # How hosts are reached is each one's own business.
    lab.pop("lab_hosts")
    example.pop("all_hosts")
    assert lab == example


def test_the_scenarios_inventory_has_the_platforms() -> None:
    platforms = {platform["name"] for platform in load(ROOT / ".config" / "molecule" / "config.yml")["platforms"]}
    assert set().union(*groups_of(ROOT / "molecule" / "inventory").values()) == platforms


def test_the_objective_of_the_archive_fits_what_postgresql_is_told() -> None:
    """A segment is closed in that time, and then it has to arrive; an idle cell must not look overdue."""
    from ansible_collections.shannon.resilience.plugins.module_utils import backup_records

    promised = load(ROOT / "config" / "objectives.yml")["backups"]
    assert set(promised) == {*backup_records.KINDS, backup_records.WAL}
    timeout = load(ROOT / "roles" / "postgres" / "defaults" / "main.yml")["postgres_archive_timeout"]
    assert promised["wal"]["rpo"] == 2 * timeout
    template = (ROOT / "roles" / "postgres" / "templates" / "dynamic.yml.j2").read_text()
    assert "'archive_timeout': postgres_archive_timeout ~ 's'" in template
    for path in ROOT.glob("inventories/**/*.yml"):
        assert "archive_timeout" not in path.read_text(), path
    # A look is good for three of the timer's; a host that was away once is not suspected.
    schedule = load(ROOT / "roles" / "backup" / "defaults" / "main.yml")["backup_jobs"]["metrics"]["schedule"]
    assert schedule == "*-*-* *:0/5:30" and backup_records.LOOKED_WITHIN == 3 * 300


def test_the_readme_names_every_verb_and_no_other() -> None:
    readme = (ROOT / "README.md").read_text()
    assert set(re.findall(r"playbooks/([a-z_]+\.yml)", readme)) == {path.name for path in PLAYBOOKS}


def test_the_readme_names_every_tag_of_site() -> None:
    plays = load(ROOT / "playbooks" / "site.yml")
    tags = {tag for play in plays for entry in play.get("roles", []) for tag in entry["tags"]}
    row = next(
        line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| `playbooks/site.yml`")
    )
    assert {tag for tag in tags if f"`{tag}`" not in row} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def pins(path: Path) -> dict[str, str]:
    """The packages of a requirements file to their exact versions."""
    lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    found = [re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[[a-z,]+\])?==([0-9][^\s]*)", line) for line in lines if line]
    assert all(found), f"{path.name} has a line that pins nothing"
    return {match[1].lower(): match[2] for match in found if match}


def test_requirements_are_pinned_once_and_fit_what_is_deployed() -> None:
    wanted = SimpleNamespace(**{name.replace("-", "_"): pin for name, pin in pins(ROOT / "requirements.txt").items()})
    assert wanted.ansible_core.startswith("2.19.")
    server = load(ROOT / "lab" / "definition.json")["qdrant"]["npm_package"].rpartition("@")[2]
    minor = [int(version.split(".")[1]) for version in (server, wanted.qdrant_client)]
    assert abs(minor[0] - minor[1]) <= 1


def test_the_options_of_a_certificate_are_what_their_documentation_says() -> None:
    from ansible_collections.shannon.resilience.plugins.doc_fragments.tls import ModuleDocFragment
    from ansible_collections.shannon.resilience.plugins.module_utils.tls import ARGUMENTS

    options = yaml.load(ModuleDocFragment.DOCUMENTATION, Loader=Loader)["options"]
    assert {name: (it["type"], it["default"]) for name, it in options.items()} == {
        name: (it["type"], it["default"]) for name, it in ARGUMENTS.items()
    }


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_a_module_says_its_certificate_in_the_one_way(module: Path) -> None:
    text = module.read_text()
    assert ("**TLS_ARGUMENTS" in text) is ("  - shannon.resilience.tls\n" in text)
