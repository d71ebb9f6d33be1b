"""Has the camera changed, or have the parts got worse? What a server watches beside its verdicts.

``signals`` turns a frame into a few numbers (focus, brightness, framing, dirt, ...), ``reference`` holds what they are
on good frames, ``betting`` turns how unusual they are into evidence with a bound on false alarms, and ``monitor`` keeps
the evidence of one camera. numpy and cv2 alone, bounded memory, no clock and no threads of its own.
"""
