import pytest
from support.search_landscape import experiment
from support.search_runs import SMALL, go


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    """A run of `SMALL` from its beginning to its end; to be read only."""
    run_dir = tmp_path_factory.mktemp("uninterrupted")
    go(run_dir, experiment(**SMALL))
    return run_dir
