"""A small app with session state."""

import time

import streamlit as st

st.session_state["runs"] = st.session_state.get("runs", 0) + 1

st.title("A legacy app")
st.caption(f"Streamlit {st.__version__}")
steps = st.slider("Steps", 1, 20, 5)
bar = st.progress(0.0)
for step in range(steps):
    time.sleep(0.1)
    bar.progress((step + 1) / steps)
st.write(f"Run {st.session_state['runs']} of this session.")
