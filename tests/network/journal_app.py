"""The app of tests that act while the network is dead: each action that it executes becomes a line of a file."""

import time
import uuid

import pandas
import streamlit as st
from journal import note

state = st.session_state
state.setdefault("session", uuid.uuid4().hex)
state.setdefault("clicks", 0)


def note_change(kind, value, initial):
    """Shows the value, and notes it if it is new to the session."""
    if value != state.get(kind, initial):
        state[kind] = value
        note(kind, value)
    st.text(f"{kind} {value}")


st.text(f"session {state['session']}")
if st.button("Count"):
    state["clicks"] += 1
    note("click", state["clicks"])
st.text(f"click {state['clicks']}")
note_change("level", st.slider("Level", 0, 10_000, 10), 10)
note_change("text", st.text_input("Text"), "")
table = st.data_editor(pandas.DataFrame({"number": [0]}), hide_index=True)
note_change("cell", int(table["number"][0]), 0)
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
