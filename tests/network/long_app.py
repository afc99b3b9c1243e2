"""The app of tests that cut connections: scripts that run for long, and a fragment on a timer."""

import time
import uuid

import streamlit as st
from journal import note

# Each beat is two messages or more: the progress bar and a text.
BEAT_SECONDS = 0.05

state = st.session_state
state.setdefault("session", uuid.uuid4().hex)
state.setdefault("clicks", 0)
state["runs"] = state.get("runs", 0) + 1


def tick():
    state["ticks"] = state.get("ticks", 0) + 1
    note("tick", state["ticks"])
    st.text(f"tick {state['ticks']}")


note("run", state["runs"])
st.text(f"session {state['session']}")
st.text(f"run {state['runs']}")
seconds = st.number_input("Seconds", 1, 3600, 30)
if st.button("Count"):
    state["clicks"] += 1
    note("click", state["clicks"])
st.text(f"click {state['clicks']}")
if hasattr(st, "fragment"):
    st.fragment(tick, run_every=1.0)()
if st.button("Work"):
    for step in range(2 * seconds):
        note("step", step)
        st.text(f"step {step}")
        time.sleep(0.5)
    note("step", "end")
    st.text("work done")
st.text("end of page")
if st.checkbox("Chatter"):
    bar, line = st.progress(0.0), st.empty()
    for beat in range(3600):
        bar.progress(beat % 100 / 100)
        line.text(f"beat {beat}")
        time.sleep(BEAT_SECONDS)
