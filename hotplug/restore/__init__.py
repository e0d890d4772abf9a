"""Save files of guests: parsers and writers without I/O, and what drives them over a file.

- pieces: what a file consists of, as values; what a parser yields and is sent
- framing: headers and frames of records, there and back
- records, pages: the bodies of records, there and back; of PAGE_DATA up to the page data
- stream: libxc's stream, up to its END: what a restorer reads
- legacy: streams of Xen 4.5 and older, told as the same pieces
- savefile: a whole file with all of its layers
- image: drives a parser over a descriptor, knows the place
- zeros, holes: zero pages found, holes made
- vcpus: the pfns in a PV guest's vcpu
- forms, inplace: plain, sparse and dense files
- convert, output: old files into new ones; files that appear when they are complete
- strict, summary: every rule of the format; figures
- xenlibs, xenstate: Xen's libraries: what is done to a domain, what is told of it
- guest, pv, hvm, memory, reading, shared: a guest restored
- saving, pvsaving, hvmsaving, p2m: a guest saved
- helper, saver, messages: libxl-save-helper, for restores and for saves
- xc_restore: the same for xend; converter: convert-legacy-stream for libxl
- loops: what goes over each page, in C or in Python
"""
