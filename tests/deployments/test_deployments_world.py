"""How the tests' view of a deployment waits."""

import httpx
from deployment_world import UNDER_WAY, World


async def test_a_handover_that_another_one_is_in_the_way_of_is_asked_for_again() -> None:
    said: list[int] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            cell = "b" if said[-1:] == [200] else "a"
            return httpx.Response(200, json={"state": "online", "scheduler": f"ts-{cell}"})
        said.append(200 if said else UNDER_WAY)
        return httpx.Response(said[-1], json={})

    transport = httpx.MockTransport(answer)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        await World(None, None, http).hand_over("n1", "b")  # type: ignore[arg-type]
    assert said == [UNDER_WAY, 200]
