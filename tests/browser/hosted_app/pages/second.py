"""The second page: a table, and the first page's session state."""

import pandas
import streamlit as st

st.title("Second")
state = st.session_state
state["visits"] = state.get("visits", 0) + 1
st.text(f"visit {state['visits']}")
st.text(f"count {state.get('count', 'lost')} on the second page")
rows = 2000
table = pandas.DataFrame({"number": range(rows), "square": [n * n * state["visits"] for n in range(rows)]})
st.dataframe(table)
st.text("end of second page")
