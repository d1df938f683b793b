"""Read the dashboard, the alerts and their page."""

import json
import os
import re
import subprocess
from typing import Any

import yaml

from tests.support.places import ROOT

COMPONENT = ROOT / "k8s/components/monitoring"
DASHBOARD: dict[str, Any] = json.loads((COMPONENT / "dashboard.json").read_text("utf-8"))
PAGE = (ROOT / "docs/monitoring.md").read_text("utf-8")


def alert_rules() -> str:
    """Return the output of `make alert-rules`: a file for Prometheus' `rule_files`."""
    environment = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MAKELEVEL"}}
    done = subprocess.run(
        ["make", "-s", "alert-rules"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


def alerts() -> list[dict[str, Any]]:
    """Return all rules."""
    return [rule for group in yaml.safe_load(alert_rules())["groups"] for rule in group["rules"]]


def configuration() -> dict[str, Any]:
    """Return the page's configuration of Prometheus."""
    (block,) = [text for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if "scrape_configs" in text]
    found: dict[str, Any] = yaml.safe_load(block)
    return found


def panels() -> list[dict[str, Any]]:
    """Return all panels except the titles of rows."""
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> list[tuple[str, str, str]]:
    """Return panel, expression and legend of every query of the dashboard, with all variables selected."""
    chosen = {"$__rate_interval": "1m", '"$model"': '".*"', '"$pod"': '".*"'}
    found = []
    for panel in panels():
        for target in panel["targets"]:
            expression = target["expr"]
            for name, value in chosen.items():
                expression = expression.replace(name, value)
            found.append((panel["title"], expression, target["legendFormat"]))
    return found
