"""Find the right and the left lung in a chest CT.

In: a volume of HU along the patient's axes. Out: a mask, the size of both lungs, and doubts. Door: `lungs.find_lungs`.
"""
