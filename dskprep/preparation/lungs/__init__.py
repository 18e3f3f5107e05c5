"""Find the right and the left lung in a chest CT.

In: a volume of HU along the patient's axes. Out: a mask, the size of both lungs, and doubts. Door: `lungs.find_lungs`.

`aerated` finds the air that is lung, `separation` tells right from left, `filling` takes in vessels and nodules,
`dense` takes in dense lung, `lungs` calls these in order and draws the mask, `doubts` looks at the result.
"""
