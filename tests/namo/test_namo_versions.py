"""Going back to the version before, for as long as the present one is on probation."""

import msgspec
from msgspec import Struct
from namo_bench import Delete, Host, Submit, a_document, a_service, chain

from controller.decider import Fired
from controller.namo.versions import PROVE, PROVING_MS
from controller.records import UseCaseState
from protocols.errors import Blame
from protocols.messages.hierarchy import ServiceState


class RollBack(Struct):
    name: str
    dry_run: bool = False


def version(number: int) -> str:
    tasks = chain("t", artifact="sha256:" + f"{number:02x}" * 32)
    return a_document(a_service(tasks))


def submit(host: Host, number: int, *, running: bool = True) -> None:
    host.call("usecase.submit", Submit(version(number)))
    if running:
        host.runs()


def names(document: str, number: int) -> bool:
    return f"sha256:{number:02x}" in document


def test_a_changed_version_can_be_gone_back_from_until_it_has_proved_itself() -> None:
    host = Host()
    submit(host, 1)
    assert host.use_case().former == ""
    submit(host, 2)
    assert names(host.use_case().former, 1)
    host.pass_time(PROVING_MS - 1)
    assert host.use_case().former
    host.pass_time(2)
    assert host.use_case().former == ""
    out = host.call("usecase.rollback", RollBack("u"))
    assert out.answers[0].blame is Blame.USER
    assert "no version to go back to" in out.answers[0].error


def test_going_back_orders_the_old_version_as_a_new_generation() -> None:
    host = Host()
    submit(host, 1)
    submit(host, 2)
    before = host.use_case()
    dry = host.call("usecase.rollback", RollBack("u", dry_run=True))
    assert dry.answers[0].value.change == "changed"
    assert host.use_case() == before
    host.call("usecase.rollback", RollBack("u"))
    assert host.use_case().generation == 3
    assert names(host.use_case().document, 1)
    assert host.use_case().former == ""
    assert names(host.service().order.tasks[0].manifest.artifact.digest, 1)


def test_what_never_proved_itself_is_nothing_to_go_back_to() -> None:
    host = Host()
    submit(host, 1)
    submit(host, 2, running=False)
    submit(host, 3)
    assert names(host.use_case().former, 1)


def test_a_break_begins_the_probation_anew_and_a_restart_too() -> None:
    host = Host()
    submit(host, 1)
    submit(host, 2)
    host.pass_time(PROVING_MS - 10)
    host.report("a", host.service().order.generation, ServiceState.DEGRADED)
    host.runs()
    host.pass_time(PROVING_MS - 10)
    assert host.use_case().former
    host.restart()
    host.pass_time(PROVING_MS - 10)
    assert host.use_case().former
    host.pass_time(20)
    assert host.use_case().former == ""


def test_the_end_of_a_use_case_ends_what_it_could_go_back_to() -> None:
    host = Host()
    submit(host, 1)
    submit(host, 2)
    host.call("usecase.delete", Delete("u"))
    assert host.use_case().former == ""
    assert host.use_case().state is UseCaseState.DELETING
    assert msgspec.msgpack.encode(host.use_case())
    host.take(host.namo.handle([Fired(PROVE + "u")], host.now_ms))
    assert host.use_case().former == ""
