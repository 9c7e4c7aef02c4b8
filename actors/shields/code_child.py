"""A child that lets bandit look at code: `python -m ayllu.actors.shields.code_child MEMORY SECONDS SEVERITY CONFIDENCE [TEST...]`.

The code comes by standard input, and is read, not run; what it does to its reader, it does to this process.
"""

from __future__ import annotations

import json
import logging
import resource
import sys

from bandit.core.config import BanditConfig
from bandit.core.manager import BanditManager

MAX_FINDINGS = 20
MAX_TEXT = 200
"""Characters of what is said of a finding."""


def main() -> None:
    """Print what was found, as JSON."""
    memory, seconds, severity, confidence, *skips = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable()
    # With debug, a test that fails is an error; otherwise bandit would go on without it.
    manager = BanditManager(
        BanditConfig(), "file", debug=True, profile={"exclude": skips}, ignore_nosec=True
    )
    manager.discover_files(["-"])
    manager.run_tests()
    found = manager.get_issue_list(severity.upper(), confidence.upper())
    answer = {
        "unreadable": [why for _, why in manager.skipped],
        "findings": [
            {
                "test": issue.test_id,
                "line": issue.lineno,
                "severity": issue.severity.lower(),
                "confidence": issue.confidence.lower(),
                "text": issue.text[:MAX_TEXT],
            }
            for issue in found[:MAX_FINDINGS]
        ],
        "more": max(0, len(found) - MAX_FINDINGS),
    }
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
