"""Re-exports the request error, so that harness and sweeps need not reach into models for it."""

from models.errors import UserError

__all__ = ["UserError"]
