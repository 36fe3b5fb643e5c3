"""What every role, module, playbook and inventory has to have, whoever writes it."""

from __future__ import annotations

import re
import typing as t
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted(path for path in (ROOT / "roles").iterdir() if path.is_dir())
MODULES = sorted(path for path in (ROOT / "plugins" / "modules").glob("*.py"))
SCENARIOS = sorted(path.parent for path in (ROOT / "molecule").glob("*/molecule.yml"))


def load(path: Path) -> t.Any:
    return yaml.safe_load(path.read_text())


def normal(value: t.Any) -> t.Any:
    """Templates compare as text, whatever their line breaks."""
    return re.sub(r"\s+", " ", value).strip() if isinstance(value, str) else value


@pytest.mark.parametrize("role", ROLES, ids=lambda path: path.name)
class TestRole:
    def test_argument_specs_and_defaults_are_the_same(self, role: Path) -> None:
        defaults = load(role / "defaults" / "main.yml")
        options = load(role / "meta" / "argument_specs.yml")["argument_specs"]["main"]["options"]
        documented = {name: normal(option["default"]) for name, option in options.items() if "default" in option}
        assert documented == {name: normal(value) for name, value in defaults.items()}
        undefined = [name for name, option in options.items() if "default" not in option and name not in defaults]
        assert all(options[name].get("required") or not options[name].get("default") for name in undefined)

    def test_variables_carry_the_roles_name(self, role: Path) -> None:
        options = load(role / "meta" / "argument_specs.yml")["argument_specs"]["main"]["options"]
        assert [name for name in options if not name.startswith(f"{role.name}_")] == []

    def test_every_option_is_described_and_typed(self, role: Path) -> None:
        spec = load(role / "meta" / "argument_specs.yml")["argument_specs"]["main"]
        assert spec["short_description"] and spec["description"]
        for name, option in spec["options"].items():
            assert option["description"], name
            assert option["type"] != "list" or "elements" in option, name

    def test_it_has_a_readme_and_a_scenario_with_tests(self, role: Path) -> None:
        assert (role / "README.md").exists()
        assert list((ROOT / "molecule" / role.name / "tests").glob("test_*.py"))

    def test_what_may_be_secret_is_marked(self, role: Path) -> None:
        options = load(role / "meta" / "argument_specs.yml")["argument_specs"]["main"]["options"]
        secret = [name for name in options if name.endswith(("_password", "_api_key"))]
        assert [name for name in secret if not options[name].get("no_log")] == []

    def test_main_fits_a_screen(self, role: Path) -> None:
        assert len((role / "tasks" / "main.yml").read_text().splitlines()) <= 40


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_a_module_documents_check_and_diff_mode(module: Path) -> None:
    text = module.read_text()
    documentation = yaml.safe_load(re.search(r'^DOCUMENTATION = r"""\n(.*?)^"""', text, re.S | re.M).group(1))
    assert documentation["module"] == module.stem
    assert {"check_mode", "diff_mode"} <= set(documentation["attributes"])
    assert "EXAMPLES = r" in text and "RETURN = r" in text


def test_the_action_group_lists_exactly_the_modules() -> None:
    listed = load(ROOT / "meta" / "runtime.yml")["action_groups"]["all"]
    assert sorted(listed) == [module.stem for module in MODULES]


@pytest.mark.parametrize("path", sorted((ROOT / "plugins").rglob("*.py")), ids=lambda path: path.stem)
def test_a_plugin_carries_its_licence(path: Path) -> None:
    head = path.read_text()[:400]
    assert "GNU General Public License v3.0+" in head and "SPDX-License-Identifier: GPL-3.0-or-later" in head


@pytest.mark.parametrize("path", sorted((ROOT / "plugins" / "module_utils").glob("*.py")), ids=lambda path: path.stem)
def test_the_library_imports_no_ansible(path: Path) -> None:
    assert not re.search(r"^\s*(from|import) ansible", path.read_text(), re.M)


def test_only_the_labs_definition_knows_its_addresses() -> None:
    network = re.compile(r"198\.18\.0\.\d")
    folders = ("inventories", "playbooks", "plugins", "roles", "tools")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    assert [str(path) for path in files if ".secrets" not in path.parts and network.search(path.read_text())] == []


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda path: path.name)
def test_a_scenario_converges_and_verifies(scenario: Path) -> None:
    assert (scenario / "converge.yml").exists()
    assert list((scenario / "tests").glob("test_*.py"))


@pytest.mark.parametrize("name", ["lab", "active_passive"])
def test_an_inventory_has_a_topology_of_its_own(name: str) -> None:
    topology = load(ROOT / "inventories" / name / "group_vars" / "all" / "topology.yml")
    assert set(topology["cells"]["main"]) == {"home"}
    assert topology["cells"]["main"]["home"] in topology["regions"]


def test_the_readme_names_every_verb() -> None:
    readme = (ROOT / "README.md").read_text()
    verbs = [path.name for path in (ROOT / "playbooks").glob("*.yml")]
    assert [verb for verb in verbs if f"playbooks/{verb}" not in readme] == []
