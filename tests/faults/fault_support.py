"""What the tests of faults share: the versions of etcd to try."""

from __future__ import annotations

import os

import pytest

from instep.testing import etcd_versions, find_etcd

# What a call may take beyond its timeout: a busy machine's scheduling, nothing of the client's.
SLACK_S = 2.0

# Another version than the newest at hand: INSTEP_TEST_ETCD_VERSION=3.4 make test
VERSION = find_etcd(os.environ.get("INSTEP_TEST_ETCD_VERSION")).version
VERSIONS = [binary.version for binary in etcd_versions()]
# That one always, the others of this machine when long tests are asked for.
EACH_VERSION = [
    version if version == VERSION else pytest.param(version, marks=pytest.mark.long) for version in VERSIONS
]
