"""A Dask cluster of one worker process and its client, for `benchmarks.dispatch`."""

from dask.distributed import Client, LocalCluster
from peer_lines import serve


def echo(value: str) -> str:
    """Return the value."""
    return value


def main() -> None:
    """Serve until our parent hangs up."""
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):

        def one(value: str) -> object:
            # Not pure: the same value twice is two jobs.
            return client.submit(echo, value, pure=False).result()

        def many(values: list[str]) -> list[object]:
            return list(client.gather(client.map(echo, values, pure=False)))

        serve(one, many)


if __name__ == "__main__":
    main()
