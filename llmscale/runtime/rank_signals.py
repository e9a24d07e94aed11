"""Imported by the server that ranks are forked from, so that the signals' flag is there from their first
instant: a request to stop that comes while a rank still starts is remembered, not fatal."""

from llmscale.runtime import stop_signal

stop_signal.install()
