"""Writes docs/roles/<role>.md from each role's meta/argument_specs.yml.

tools/role_docs.py            write them
tools/role_docs.py --check    tell which ones are not what they should be, and change nothing
"""

from __future__ import annotations

import argparse
import re
import sys
import typing as t
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs" / "roles"
_MARKUP = re.compile(r"\b[BCIMOPRLUV]+\(([^)]*)\)")


def plain(text: str | list[str]) -> str:
    """Ansible's markup as Markdown: names and values in code quotes."""
    joined = " ".join(text) if isinstance(text, list) else text
    return re.sub(r"\s+", " ", _MARKUP.sub(lambda match: f"`{match.group(1)}`", joined)).strip()


#: A longer default would make the table unreadable.
LONGEST_DEFAULT = 160


def default_of(option: dict[str, t.Any], role: str) -> str:
    """The default as it stands in the defaults file, on one line; a long one is read there."""
    if option.get("required"):
        return "**required**"
    if "default" not in option:
        return ""
    value = option["default"]
    text = value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True, width=10000).strip()
    text = text.removesuffix("...").strip()
    shown = re.sub(r"\s+", " ", text)
    if len(shown) > LONGEST_DEFAULT:
        return f"[see there](../../roles/{role}/defaults/main.yml)"
    return f"`{shown}`".replace("|", "\\|") if shown else '`""`'


def rows(options: dict[str, dict[str, t.Any]], role: str) -> t.Iterator[str]:
    """A line of the table for each variable."""
    for name, option in options.items():
        kind = option["type"] + (f" of {option['elements']}" if "elements" in option else "")
        words = plain(option["description"]).replace("|", "\\|")
        if option.get("choices"):
            words += " One of " + ", ".join(f"`{choice}`" for choice in option["choices"]) + "."
        yield f"| `{name}` | {kind} | {default_of(option, role)} | {words} |"


def page(role: Path) -> str:
    """The page of one role."""
    spec = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text())["argument_specs"]["main"]
    lines = [
        f"# Role `shannon.resilience.{role.name}`",
        "",
        f"<!-- Written by tools/role_docs.py from roles/{role.name}/meta/argument_specs.yml: change it there. -->",
        "",
        f"{plain(spec['short_description'])}.",
        "",
        *(f"{plain(paragraph)}\n" for paragraph in spec["description"]),
        f"See also [the role's README](../../roles/{role.name}/README.md).",
        "",
        "| variable | type | default | meaning |",
        "|---|---|---|---|",
        *rows(spec.get("options", {}), role.name),
    ]
    return "\n".join(lines) + "\n"


def index(roles: list[Path]) -> str:
    """The page that leads to all of them."""
    lines = ["# Roles", "", "One page of variables per role, written from the roles' argument specs.", ""]
    for role in roles:
        spec = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text())["argument_specs"]["main"]
        lines.append(f"- [{role.name}]({role.name}.md): {plain(spec['short_description'])}")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 when a page is out of date")
    args = parser.parse_args()
    roles = sorted(path for path in (ROOT / "roles").iterdir() if (path / "meta" / "argument_specs.yml").exists())
    wanted = {DOCS / f"{role.name}.md": page(role) for role in roles} | {DOCS / "README.md": index(roles)}
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    stale += [path for path in DOCS.glob("*.md") if path not in wanted]
    if args.check:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is not what the argument specs say: run make docs")
        return 1 if stale else 0
    DOCS.mkdir(parents=True, exist_ok=True)
    for path in stale:
        if path in wanted:
            path.write_text(wanted[path])
        else:
            path.unlink()
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
