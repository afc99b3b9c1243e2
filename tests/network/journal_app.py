"""The app of tests that act while the network is dead: each action that it executes becomes a line of a file."""

import pathlib
import time
import uuid

import streamlit as st

JOURNAL = pathlib.Path("journal")
"""In the server's working directory. A line is the session, the kind of the action, and its value."""

state = st.session_state
state.setdefault("session", uuid.uuid4().hex)


def note(kind, value):
    """Appends one line in a single write."""
    with JOURNAL.open("a") as journal:
        journal.write(f"{state['session']} {kind} {value}\n")


st.text(f"session {state['session']}")
if st.button("Count"):
    state["clicks"] = state.get("clicks", 0) + 1
    note("click", state["clicks"])
    st.text(f"click {state['clicks']}")
level = st.slider("Level", 0, 100, 10)
if level != state.get("level", 10):
    state["level"] = level
    note("level", level)
st.text(f"level {level}")
with st.form("form", clear_on_submit=True):
    word = st.text_input("Word")
    if st.form_submit_button("Submit"):
        note("form", word)
        state["word"] = word
if "word" in state:
    st.text(f"form {state['word']}")
if st.button("Work"):
    for step in range(60):
        note("step", step)
        st.text(f"step {step}")
        time.sleep(0.5)
    note("step", "end")
    st.text("work done")
text = st.chat_input("Chat")
if text:
    note("chat", text)
    state["chat"] = text
if "chat" in state:
    st.text(f"chat {state['chat']}")
st.text("end of page")
