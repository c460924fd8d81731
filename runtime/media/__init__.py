"""Media files, in the order of the data.

``decode`` opens a file, chooses its streams and decodes them, on the one ``clock`` of the film. ``frames`` samples
frames of a video, ``sparse`` decodes only those and what they depend on (told by ``nal_units``).
``film`` cuts chosen ranges exactly, with what ``picture`` makes of pictures and ``sound`` of sound; ``film_copy``
copies them without encoding, by what ``packets`` and ``parameter_sets`` tell, with their sound by ``sound_copy`` and
``mp3_reservoir``; ``film_smart`` encodes only their borders. ``ahead`` lets stages overlap; ``rational`` reads PyAV's
numbers.
"""
