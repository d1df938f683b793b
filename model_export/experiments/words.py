"""Words that a picture does not decide: names, places, months, days, and words of time and manner."""

from typing import Final

_TEXT = """
adam alice anna ben carla david elena emma felix george hannah igor jack julia karim laura leo lucy marco maria
martin nadia nina oliver omar paul peter rosa sam sara sofia thomas tim victor wendy yusuf
amsterdam athens berlin boston brussels cairo chicago delhi denver dublin geneva hamburg helsinki houston istanbul
kyoto lagos lima lisbon london madrid milan munich nairobi naples oslo paris porto prague rome seattle seoul sydney
tokyo vienna warsaw zurich
january february march april may june july august september october november december
monday tuesday wednesday thursday friday saturday sunday
today yesterday tomorrow morning noon evening midnight early late later soon again once twice often seldom never
always still already finally recently suddenly slowly quickly quietly gladly simply mostly nearly almost barely
maybe perhaps probably certainly surely really quite rather very truly indeed anyway instead besides however
favourite famous cheap expensive important boring lovely nice great awful strange funny sad happy lucky tired proud
first second third last next previous final only another other both several many few some
bought sold found lost saved shared posted sent received wanted liked loved missed borrowed promised remembered
my your his her our their this that these those here there somewhere anywhere
because although while until since before after during without within against between among
"""

WORDS: Final = tuple(_TEXT.split())
"""None of them names a thing that could be seen. In the order of the file, which decides the draws."""
