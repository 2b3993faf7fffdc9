"""Reports of load and link: which samples are worth a message."""

from msgspec import structs

from device_agent.core.commands import Say, SetPace
from device_agent.core.turn import Turn
from device_agent.sensing.reporting import due_link, due_load, whole_every
from protocols.messages.presence import Welcome
from protocols.messages.sense import LinkReport, LoadReport, SetSensing
from protocols.topics import Channel


class Reports:
    """What the scheduler was told last, and how often it wants to be."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._sensing = SetSensing()
        self._load: LoadReport | None = None
        self._link: LinkReport | None = None

    def welcomed(self, body: Welcome) -> None:
        """Begin anew: whoever welcomes may have no memory, so the next samples are reported."""
        self.pace(
            structs.replace(self._sensing, heartbeat_ms=body.heartbeat_ms, sample_ms=body.sample_ms)
        )
        self._load = self._link = None

    def pace(self, settings: SetSensing) -> None:
        """Sample, probe and report so from now on."""
        self._sensing = settings
        every = whole_every(settings.sample_ms)
        self._turn.out.append(SetPace(settings.sample_ms, settings.probe_ms, every))

    def load(self, sampled: LoadReport) -> None:
        """Report a load that has moved, or is due."""
        report = due_load(self._load, sampled, self._sensing)
        if report is not None:
            self._load = report
            self._turn.out.append(Say(Channel.LOAD, report, report.cause))

    def link(self, sampled: LinkReport) -> None:
        """Report a link that has moved, or is due."""
        report = due_link(self._link, sampled, self._sensing)
        if report is not None:
            self._link = report
            self._turn.out.append(Say(Channel.LINK, report, report.cause))
