"""What a client keeps of a service between its requests."""

from tona.routes import STOOD_MS, Service


def test_the_next_request_tells_once_how_long_the_slowest_one_stood() -> None:
    service = Service("s")
    service.ended(1000, 1100)
    service.ended(1080, 1105)
    assert [service.news(1120), service.news(1140)] == [100, 0]
    service.ended(1000, 1100)
    assert service.news(1100 + STOOD_MS) == 0, "no news any more"
