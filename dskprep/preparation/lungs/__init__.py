"""Find the right and the left lung in a chest CT.

In: a volume of HU along the patient's axes. Out: a mask, the size of both lungs, and doubts. Door: `lungs.find_lungs`.

`aerated` finds the air that is lung, `separation` tells right from left, `filling` takes in vessels and nodules,
`expected` says where each lung would be by the other one and the ribs, `missing` measures what is not there, `dense`
takes in dense lung there, `lungs` calls these in order and draws the mask, `doubts` looks at the result.
"""
