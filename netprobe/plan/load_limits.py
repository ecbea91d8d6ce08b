"""The table `[governor]` of a plan: how loaded a host may be while the plan is probed. Pure; beside plan.plans."""

from netprobe.errors import UsageError
from netprobe.model.load import LoadLimits
from netprobe.plan.fields import Fields

MAX_DROPS = 1e9


def governor_table(fields: Fields | None, where: str) -> LoadLimits:
    """The limits that a plan states, or the default ones.

    Raises:
        UsageError: a key is unknown, or a share is not above 0.
    """
    if fields is None:
        return LoadLimits()
    default = LoadLimits()

    def share(key: str, otherwise: float) -> float:
        value = fields.optional_ratio(key)
        if value is not None and value <= 0:
            raise UsageError(f"{where}.governor.{key}", f"got {value:g}", allowed="more than 0, up to 100%")
        return otherwise if value is None else value

    limits = LoadLimits(
        is_on=fields.boolean("enabled", default=default.is_on),
        cpu=share("cpu", default.cpu),
        pressure=share("pressure", default.pressure),
        share=share("share", default.share),
        drops=fields.number("drops", default.drops, 0, MAX_DROPS),
    )
    fields.finish()
    return limits
