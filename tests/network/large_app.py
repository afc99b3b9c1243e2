"""The app for tests with one large message: a table of 20 MB."""

import numpy
import streamlit as st

NUMBERS = 2_500_000
"""Random 8-byte numbers, so that no compression shrinks them."""

state = st.session_state
state["runs"] = state.get("runs", 0) + 1
level = st.slider("Level", 0, 100, 10)
st.text(f"level {level}")
st.text(f"run {state['runs']}")
if st.button("Table"):
    state["tables"] = state.get("tables", 0) + 1
if state.get("tables"):
    numbers = numpy.random.default_rng(state["tables"]).integers(0, 2**53, NUMBERS)
    st.dataframe({"number": numbers})
    st.text(f"table {state['tables']}")
st.text("end of page")
