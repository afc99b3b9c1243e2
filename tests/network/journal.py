"""What the apps of these tests execute, line by line in a file: the page's name, the kind of the event, its value."""

import pathlib

import streamlit as st

FILE = pathlib.Path("journal")
"""In the server's working directory."""


def _page_name():
    if hasattr(st, "query_params"):
        return st.query_params["page"]
    return st.experimental_get_query_params()["page"][0]


def note(kind, value):
    """Appends one line in a single write."""
    with FILE.open("a") as journal:
        journal.write(f"{_page_name()} {kind} {value}\n")
