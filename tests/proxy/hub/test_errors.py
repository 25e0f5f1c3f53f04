"""Failures in the Hub's own shapes."""

import json

import pytest
from multidict import CIMultiDict

from proxy.hub.client import Client
from proxy.hub.errors import HubError, OriginUnavailable, come_again, entry_not_found, respond

NEW, OLD = Client(user_agent="x; hf_hub/1.33.0"), Client(user_agent="x; hf_hub/0.36.0")


def test_what_the_hub_said_reaches_the_client():
    said = CIMultiDict(
        {
            "x-error-code": "GatedRepo",
            "x-error-message": "Access to model a/b is restricted.",
            "X-Request-Id": "Root=1-2",
            "Set-Cookie": "token=1",
            "Content-Type": "application/json",
            "WWW-Authenticate": "Bearer",
        }
    )
    answer = respond(HubError.of(403, said, b'{"error":"no"}'), NEW)
    assert (answer.status, answer.body) == (403, b'{"error":"no"}')
    assert answer.headers["X-Error-Code"] == "GatedRepo"
    assert answer.headers["X-Error-Message"] == "Access to model a/b is restricted."
    assert answer.headers["X-Request-Id"] == "Root=1-2"
    assert "Set-Cookie" not in answer.headers


@pytest.mark.parametrize(
    ("status", "headers", "code"),
    [
        (401, {"X-Error-Message": "Invalid username or password."}, "RepoNotFound"),
        (401, {}, "RepoNotFound"),
        (401, {"X-Error-Message": "Invalid credentials in Authorization header"}, ""),
        (401, {"X-Error-Code": "GatedRepo"}, "GatedRepo"),
        (403, {"X-Error-Message": "Access to this resource is disabled."}, ""),
    ],
)
def test_a_bare_401_gets_the_code_that_clients_only_infer_over_https(status, headers, code):
    error = HubError.of(status, CIMultiDict(headers))
    assert error.code == code
    assert respond(error, NEW).headers.get("X-Error-Code", "") == code


def test_a_missing_file_is_remembered_by_clients():
    answer = respond(entry_not_found("a", "c" * 40), NEW)
    assert answer.status == 404
    assert answer.headers["X-Error-Code"] == "EntryNotFound"
    assert answer.headers["X-Repo-Commit"] == "c" * 40
    assert answer.body == b"Entry not found"


def test_the_origins_faults_are_never_told_as_the_clients():
    assert respond(OriginUnavailable("dark"), NEW).status == 502
    assert respond(OriginUnavailable("slow", is_timeout=True), OLD).status == 504
    answer = respond(OriginUnavailable("no\r\nX-Evil: 1"), NEW)
    assert "\n" not in answer.headers["X-Error-Message"]
    assert json.loads(answer.body)["error"]
    assert "X-Error-Code" not in answer.headers


def test_clients_are_made_to_wait_in_the_way_they_know():
    new, old = respond(OriginUnavailable("busy", retry_after=7.4), NEW), respond(come_again("busy", OLD, 7), OLD)
    assert (new.status, old.status) == (429, 503)
    assert new.headers["RateLimit"] == '"hubmesh";r=0;t=7'
    assert new.headers["Retry-After"] == old.headers["Retry-After"] == "7"
