"""Part of the classes of TotalSegmentator 2.18.0."""

class_map = {
    "total": {
        5: "liver",
        10: "lung_upper_lobe_left",
        11: "lung_lower_lobe_left",
        12: "lung_upper_lobe_right",
        13: "lung_middle_lobe_right",
        14: "lung_lower_lobe_right",
        15: "esophagus",
    }
}
