# Copyright: (c) 2026, the shannon.resilience authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A rendered template, without a copy of every variable for each."""

from __future__ import annotations

DOCUMENTATION = r"""
name: rendered
short_description: The text of a template of the role
version_added: "0.1.0"
description:
  - Renders templates as P(ansible.builtin.template#lookup) does, with its defaults.
  - That one copies all variables of the host for every template, which is a tenth of what a run costs the controller.
options:
  _terms:
    description: Names of templates, found as those of the module M(ansible.builtin.template) are.
    type: list
    elements: str
    required: true
  template_vars:
    description: Variables for these templates alone.
    type: dict
    default: {}
author:
  - Shannon resilience authors (@shannon)
"""

EXAMPLES = r"""
- name: Write the configuration
  shannon.resilience.config_files:
    files:
      - path: /etc/shannon/example.conf
        content: "{{ lookup('shannon.resilience.rendered', 'example.conf.j2') }}"
"""

RETURN = r"""
_raw:
  description: The rendered texts.
  type: list
  elements: str
"""

import os
import typing as t

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase
from ansible.template import trust_as_template


class LookupModule(LookupBase):
    """What Ansible calls."""

    def run(
        self, terms: t.Sequence[str], variables: t.Mapping[str, t.Any] | None = None, **kwargs: t.Any
    ) -> list[t.Any]:
        """Render each template."""
        variables = variables or {}
        self.set_options(var_options=variables, direct=kwargs)
        own = {**variables, **self.get_option("template_vars")}
        return [self._render(term, own) for term in terms]

    def _render(self, term: str, variables: dict[str, t.Any]) -> t.Any:
        path = self.find_file_in_search_path(variables, "templates", term)
        if not path:
            raise AnsibleLookupError(f"the template {term} is in none of the folders 'templates' of this role and play")
        folders = [os.path.dirname(path)]
        for folder in variables.get("ansible_search_path", []):
            folders += [os.path.join(folder, "templates"), folder]
        templar = self._templar.copy_with_new_env(available_variables=variables, searchpath=folders)
        text = trust_as_template(self._loader.get_text_file_contents(path))
        return templar.template(text, escape_backslashes=False, overrides={"trim_blocks": True})
