import pytest
from support.messages_api_server import KEY, MessagesServer
from support.search_landscape import experiment
from support.search_runs import SMALL, go

from flyjax.search.llm import client
from flyjax.search.llm.proposer import LLMProposer
from flyjax.search.proposals.types import BadAnswer, Paused


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    """A run of `SMALL` from its beginning to its end; to be read only."""
    run_dir = tmp_path_factory.mktemp("uninterrupted")
    go(run_dir, experiment(**SMALL))
    return run_dir


@pytest.fixture
def key(monkeypatch):
    """A language model's key in the environment, and no wait between two attempts."""
    monkeypatch.setenv(client.KEY_NAME, KEY)
    monkeypatch.delenv("ANTHROPIC_BASE_URL", raising=False)
    monkeypatch.setattr(client, "BACKOFF_S", 0.01)
    monkeypatch.setattr(client, "ERROR_S", 0.1)


@pytest.fixture
def ask(monkeypatch, key):
    """ask(answers, context): (step or exception, requests) of one step through the real client."""

    def one(answers, ctx):
        with MessagesServer(answers) as server:
            monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
            try:
                return LLMProposer(ctx.experiment).step(ctx), server.requests
            except (BadAnswer, Paused) as caught:
                return caught, server.requests

    return one
