/* The loops over pages and page-table entries that Python is too slow for.
 *
 * A guest of 4 GB has a million pages, and each entry of its page tables is looked at: in Python
 * that takes longer than all the rest of a restore. loops_slow.py has the same functions in Python,
 * held to the same tests, for where this could not be built.
 *
 * Buffers come in as what Python's buffer protocol gives, checked for size here; nothing is kept.
 * Numbers are 64-bit and little-endian, as Xen's are on the only processors with save files. The
 * long loops run without the global lock of Python. The build asks for the limited API of 3.11, so
 * that one binary serves all later ones.
 */

#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#define PAGE 4096
#define ENTRIES (PAGE / 8) /* of a page table */
#define EXTENT 512         /* pages of a superpage */
#define INVALID UINT64_MAX /* in a p2m: no frame */
#define PFN_MASK ((UINT64_C(1) << 52) - 1)
#define FRAME_MASK UINT64_C(0x000ffffffffff000)
#define PRESENT 1
#define SUPERPAGE 0x80
#define TYPE_SHIFT 28 /* of XEN_DOMCTL_PFINFO_* */
#define TYPE_REST UINT64_C(0x0fffffff)

/* Page types, as the highest four bits of an entry have them. */
enum { NOTAB = 0, L1TAB = 1, L4TAB = 4, PIN = 8, BROKEN = 13, XALLOC = 14, XTAB = 15 };

struct words {
	Py_buffer view;
	uint64_t *at;
	size_t count;
};

/* A buffer of 64-bit words; false with an exception if it is none. */
static int take_words(PyObject *object, struct words *words, int writable)
{
	if (PyObject_GetBuffer(object, &words->view, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE) < 0)
		return 0;
	if (words->view.len % 8 || (words->view.len && (uintptr_t)words->view.buf % 8)) {
		PyBuffer_Release(&words->view);
		PyErr_SetString(PyExc_ValueError, "not a row of 64-bit words");
		return 0;
	}
	words->at = words->view.buf;
	words->count = (size_t)words->view.len / 8;
	return 1;
}

static int is_table(unsigned type)
{
	return (type & 7) >= L1TAB && (type & 7) <= L4TAB && type < BROKEN;
}

static int is_zero(const uint8_t *page)
{
	const uint64_t *word = (const void *)page;

	for (size_t i = 0; i < ENTRIES; i += 8)
		if (word[i] | word[i + 1] | word[i + 2] | word[i + 3] | word[i + 4] | word[i + 5] |
		    word[i + 6] | word[i + 7])
			return 0;
	return 1;
}

/* highest(words): the highest of some words, 0 if there are none. */
static PyObject *highest(PyObject *self, PyObject *object)
{
	struct words words;
	uint64_t found = 0;

	(void)self;
	if (!take_words(object, &words, 0))
		return NULL;
	for (size_t i = 0; i < words.count; i++)
		found = words.at[i] > found ? words.at[i] : found;
	PyBuffer_Release(&words.view);
	return PyLong_FromUnsignedLongLong(found);
}

/* classify(entries, types, limit, kinds): enter the types of a PAGE_DATA record.
 *
 * entries: words {type << 60 | pfn}; types: a byte for each pfn; limit: the number of pfns; kinds:
 * a byte for each entry, set to its type. Returns the number of entries that have a page of data;
 * ValueError names the first entry that is wrong, before anything is changed. */
static PyObject *classify(PyObject *self, PyObject *arguments)
{
	PyObject *entries_object, *types_object, *kinds_object, *result = NULL;
	struct words entries;
	Py_buffer types, kinds;
	unsigned long long limit;
	size_t data = 0;

	(void)self;
	if (!PyArg_ParseTuple(arguments, "OOKO", &entries_object, &types_object, &limit, &kinds_object))
		return NULL;
	if (!take_words(entries_object, &entries, 0))
		return NULL;
	if (PyObject_GetBuffer(types_object, &types, PyBUF_WRITABLE) < 0)
		goto without_types;
	if (PyObject_GetBuffer(kinds_object, &kinds, PyBUF_WRITABLE) < 0)
		goto without_kinds;
	if ((unsigned long long)types.len < limit || (size_t)kinds.len < entries.count) {
		PyErr_SetString(PyExc_ValueError, "a buffer is too small");
		goto end;
	}
	for (size_t i = 0; i < entries.count; i++) {
		unsigned type = (unsigned)(entries.at[i] >> 60);
		uint64_t pfn = entries.at[i] & PFN_MASK;

		if (type >= 5 && type <= 8) {
			PyErr_Format(PyExc_ValueError, "pfn %llu has the type %u, which is reserved",
				     (unsigned long long)pfn, type);
			goto end;
		}
		if (pfn >= limit) {
			PyErr_Format(PyExc_ValueError, "pfn %llu is beyond the guest's last one, %llu",
				     (unsigned long long)pfn, limit - 1);
			goto end;
		}
	}
	for (size_t i = 0; i < entries.count; i++) {
		unsigned type = (unsigned)(entries.at[i] >> 60);

		((uint8_t *)types.buf)[entries.at[i] & PFN_MASK] = (uint8_t)type;
		((uint8_t *)kinds.buf)[i] = (uint8_t)type;
		data += type < BROKEN;
	}
	result = PyLong_FromSize_t(data);
end:
	PyBuffer_Release(&kinds);
without_kinds:
	PyBuffer_Release(&types);
without_types:
	PyBuffer_Release(&entries.view);
	return result;
}

/* unpopulated(entries, p2m, out): the pfns of entries that need a frame and have none.
 *
 * out: words, at least as many as entries. Returns how many there are. A pfn that comes twice is
 * told once: its place in the p2m is marked meanwhile. */
static PyObject *unpopulated(PyObject *self, PyObject *arguments)
{
	PyObject *entries_object, *p2m_object, *out_object, *result = NULL;
	struct words entries, p2m, out;
	size_t count = 0;

	(void)self;
	if (!PyArg_ParseTuple(arguments, "OOO", &entries_object, &p2m_object, &out_object))
		return NULL;
	if (!take_words(entries_object, &entries, 0))
		return NULL;
	if (!take_words(p2m_object, &p2m, 1))
		goto without_p2m;
	if (!take_words(out_object, &out, 1))
		goto without_out;
	if (out.count < entries.count) {
		PyErr_SetString(PyExc_ValueError, "a buffer is too small");
		goto end;
	}
	for (size_t i = 0; i < entries.count; i++) {
		unsigned type = (unsigned)(entries.at[i] >> 60);
		uint64_t pfn = entries.at[i] & PFN_MASK;

		if (type == BROKEN || type == XTAB || pfn >= p2m.count || p2m.at[pfn] != INVALID)
			continue;
		p2m.at[pfn] = INVALID - 1;
		out.at[count++] = pfn;
	}
	for (size_t i = 0; i < count; i++)
		p2m.at[out.at[i]] = INVALID;
	result = PyLong_FromSize_t(count);
end:
	PyBuffer_Release(&out.view);
without_out:
	PyBuffer_Release(&p2m.view);
without_p2m:
	PyBuffer_Release(&entries.view);
	return result;
}

/* scatter(target, indices, values, row): target[indices[i] + k] = values[i] + k for each k < row. */
static PyObject *scatter(PyObject *self, PyObject *arguments)
{
	PyObject *target_object, *indices_object, *values_object, *result = NULL;
	struct words target, indices, values;
	unsigned row;

	(void)self;
	if (!PyArg_ParseTuple(arguments, "OOOI", &target_object, &indices_object, &values_object, &row))
		return NULL;
	if (!take_words(target_object, &target, 1))
		return NULL;
	if (!take_words(indices_object, &indices, 0))
		goto without_indices;
	if (!take_words(values_object, &values, 0))
		goto without_values;
	for (size_t i = 0; i < indices.count; i++)
		if (row > target.count || indices.at[i] > target.count - row || i >= values.count) {
			PyErr_SetString(PyExc_ValueError, "an index is out of range");
			goto end;
		}
	for (size_t i = 0; i < indices.count; i++)
		for (unsigned k = 0; k < row; k++)
			target.at[indices.at[i] + k] = values.at[i] + k;
	result = Py_NewRef(Py_None);
end:
	PyBuffer_Release(&values.view);
without_values:
	PyBuffer_Release(&indices.view);
without_indices:
	PyBuffer_Release(&target.view);
	return result;
}

static int is_extent(const struct words *pfns, size_t at)
{
	if (pfns->at[at] % EXTENT || pfns->count - at < EXTENT)
		return 0;
	for (size_t k = 1; k < EXTENT; k++)
		if (pfns->at[at + k] != pfns->at[at] + k)
			return 0;
	return 1;
}

/* superpages(pfns, heads, rest): rows of pfns that are whole superpages, and the other pfns.
 *
 * heads: filled with the first pfn of each row; rest: with the others. They have room for as many
 * words as there are pfns. Returns the two counts. */
static PyObject *superpages(PyObject *self, PyObject *arguments)
{
	PyObject *objects[3], *result = NULL;
	struct words words[3]; /* pfns, heads, rest */
	size_t heads = 0, rest = 0;
	int taken = 0;

	(void)self;
	if (!PyArg_ParseTuple(arguments, "OOO", &objects[0], &objects[1], &objects[2]))
		return NULL;
	for (; taken < 3; taken++)
		if (!take_words(objects[taken], &words[taken], taken > 0))
			goto end;
	if (words[1].count < words[0].count || words[2].count < words[0].count) {
		PyErr_SetString(PyExc_ValueError, "a buffer is too small");
		goto end;
	}
	for (size_t i = 0; i < words[0].count;) {
		if (is_extent(&words[0], i)) {
			words[1].at[heads++] = words[0].at[i];
			i += EXTENT;
		} else
			words[2].at[rest++] = words[0].at[i++];
	}
	result = Py_BuildValue("nn", (Py_ssize_t)heads, (Py_ssize_t)rest);
end:
	while (taken--)
		PyBuffer_Release(&words[taken].view);
	return result;
}

/* find_zeros(data, zeros): which pages are zero.
 *
 * data: pages; zeros: a byte for each, set to 1 if the page is zero, else left. */
static PyObject *find_zeros(PyObject *self, PyObject *arguments)
{
	PyObject *data_object, *zeros_object, *result = NULL;
	Py_buffer data, zeros;

	(void)self;
	if (!PyArg_ParseTuple(arguments, "OO", &data_object, &zeros_object))
		return NULL;
	if (PyObject_GetBuffer(data_object, &data, PyBUF_SIMPLE) < 0)
		return NULL;
	if (PyObject_GetBuffer(zeros_object, &zeros, PyBUF_WRITABLE) < 0)
		goto without_zeros;
	if (data.len / PAGE < zeros.len || (uintptr_t)data.buf % 8) {
		PyErr_SetString(PyExc_ValueError, "a buffer is too small");
		goto end;
	}
	Py_BEGIN_ALLOW_THREADS
	for (Py_ssize_t i = 0; i < zeros.len; i++)
		if (is_zero((const uint8_t *)data.buf + i * PAGE))
			((uint8_t *)zeros.buf)[i] = 1;
	Py_END_ALLOW_THREADS
	result = Py_NewRef(Py_None);
end:
	PyBuffer_Release(&zeros);
without_zeros:
	PyBuffer_Release(&data);
	return result;
}

/* Bytes at an offset of a file, all of them; an error number. */
static int read_all(int fd, uint8_t *to, size_t size, uint64_t offset)
{
	while (size) {
		ssize_t done = pread(fd, to, size, (off_t)offset);

		if (done < 0 && errno != EINTR)
			return errno;
		if (done == 0)
			return ENODATA; /* it was longer a moment ago */
		if (done > 0) {
			to += done;
			size -= (size_t)done;
			offset += (uint64_t)done;
		}
	}
	return 0;
}

/* Where data of a file begins from an offset on, and where the next hole does. */
static void next_data(int fd, uint64_t offset, uint64_t end, uint64_t *data, uint64_t *hole)
{
	off_t found = lseek(fd, (off_t)offset, SEEK_DATA);

	*data = *hole = end;
	if (found >= 0) {
		*data = (uint64_t)found;
		found = lseek(fd, found, SEEK_HOLE);
		if (found >= 0)
			*hole = (uint64_t)found;
	} else if (errno != ENXIO) /* it has no such call, so it has no holes */
		*data = offset;
}

/* Some pages of a file, looked at in as many steps as the buffer asks for; an error number. */
static int look_at(int fd, uint64_t place, uint8_t *zeros, size_t count, Py_buffer *buffer)
{
	size_t step = (size_t)buffer->len / PAGE;

	for (size_t i = 0; i < count; i += step) {
		size_t some = count - i < step ? count - i : step;
		int error = read_all(fd, buffer->buf, some * PAGE, place + i * PAGE);

		if (error)
			return error;
		for (size_t k = 0; k < some; k++)
			if (is_zero((const uint8_t *)buffer->buf + k * PAGE))
				zeros[i + k] = 1;
	}
	return 0;
}

/* find_zeros_in_file(fd, place, zeros, buffer, extent): which pages of a file are zero.
 *
 * place: where the first is; zeros: a byte for each, set to 1 if the page is in a hole, else left;
 * and if buffer has room for pages, also set if the page is not in a hole and zero. extent: two
 * words, where some data of the file is known to begin and where the hole behind it does; they are
 * set to what is found. A file system looks at all the data that there is to find the next hole. */
static PyObject *find_zeros_in_file(PyObject *self, PyObject *arguments)
{
	PyObject *zeros_object, *buffer_object, *extent_object, *result = NULL;
	Py_buffer zeros, buffer;
	struct words extent;
	unsigned long long place;
	size_t at = 0, count;
	int fd, error = 0;

	(void)self;
	if (!PyArg_ParseTuple(arguments, "iKOOO", &fd, &place, &zeros_object, &buffer_object,
			      &extent_object))
		return NULL;
	if (PyObject_GetBuffer(zeros_object, &zeros, PyBUF_WRITABLE) < 0)
		return NULL;
	if (PyObject_GetBuffer(buffer_object, &buffer, PyBUF_WRITABLE) < 0)
		goto without_buffer;
	if (!take_words(extent_object, &extent, 1))
		goto without_extent;
	if (extent.count < 2) {
		PyErr_SetString(PyExc_ValueError, "a buffer is too small");
		goto end;
	}
	count = (size_t)zeros.len;
	Py_BEGIN_ALLOW_THREADS
	while (at < count && !error) {
		uint64_t offset = place + at * PAGE, end = place + count * PAGE, data, hole;
		size_t next;

		if (offset < extent.at[0] || offset >= extent.at[1])
			next_data(fd, offset, end, &extent.at[0], &extent.at[1]);
		data = extent.at[0] > offset ? extent.at[0] : offset;
		data = data < end ? data : end;
		hole = extent.at[1] < end ? extent.at[1] : end;
		next = at + (data - offset) / PAGE;
		memset((uint8_t *)zeros.buf + at, 1, next - at);
		at = next;
		next = (hole - place + PAGE - 1) / PAGE; /* behind the last page that has data */
		if (next > at && buffer.len >= PAGE)
			error = look_at(fd, place + at * PAGE, (uint8_t *)zeros.buf + at, next - at,
					&buffer);
		at = next > at ? next : at;
	}
	Py_END_ALLOW_THREADS
	if (error) {
		errno = error;
		PyErr_SetFromErrno(PyExc_OSError);
	} else
		result = Py_NewRef(Py_None);
end:
	PyBuffer_Release(&extent.view);
without_extent:
	PyBuffer_Release(&buffer);
without_buffer:
	PyBuffer_Release(&zeros);
	return result;
}

/* place_pages(entries, zeros, base, as_hvm, plain, zero, tables, places): which pages have what.
 *
 * entries: words {type << 60 | pfn}; zeros: a byte for each of those that have a page of data, not 0
 * if that is zero; base: where the first of these pages is; as_hvm: tables are plain data. Fills
 * words with the pfns of plain pages that are not zero, of pages that are to be zero, and of page
 * tables; places: where each plain page is, then each table. Each has room for as many words as
 * there are entries. Returns the three counts. */
static PyObject *place_pages(PyObject *self, PyObject *arguments)
{
	PyObject *objects[5], *zeros_object, *result = NULL;
	struct words words[5]; /* entries, plain, zero, tables, places */
	unsigned long long base;
	Py_buffer zeros;
	size_t page = 0, plain = 0, zero = 0, tables = 0;
	int taken = 0, as_hvm;

	(void)self;
	if (!PyArg_ParseTuple(arguments, "OOKpOOOO", &objects[0], &zeros_object, &base, &as_hvm,
			      &objects[1], &objects[2], &objects[3], &objects[4]))
		return NULL;
	if (PyObject_GetBuffer(zeros_object, &zeros, PyBUF_SIMPLE) < 0)
		return NULL;
	for (; taken < 5; taken++)
		if (!take_words(objects[taken], &words[taken], taken > 0))
			goto end;
	for (size_t i = 0; i < words[0].count; i++)
		page += words[0].at[i] >> 60 < BROKEN;
	for (int i = 1; i < 5; i++)
		if (words[i].count < words[0].count || page > (size_t)zeros.len) {
			PyErr_SetString(PyExc_ValueError, "a buffer is too small");
			goto end;
		}
	/* A table's place is noted from the end on, in the room of the entries that are none. */
	page = 0;
	for (size_t i = 0; i < words[0].count; i++) {
		unsigned type = (unsigned)(words[0].at[i] >> 60);
		uint64_t pfn = words[0].at[i] & PFN_MASK;

		if (type == XALLOC)
			words[2].at[zero++] = pfn;
		if (type >= BROKEN)
			continue;
		if (((const uint8_t *)zeros.buf)[page])
			words[2].at[zero++] = pfn;
		else if (!as_hvm && is_table(type)) {
			words[3].at[tables++] = pfn;
			words[4].at[words[0].count - tables] = base + page * PAGE;
		} else {
			words[1].at[plain] = pfn;
			words[4].at[plain++] = base + page * PAGE;
		}
		page++;
	}
	for (size_t low = words[0].count - tables, high = words[0].count; low + 1 < high; low++) {
		uint64_t last = words[4].at[--high];

		words[4].at[high] = words[4].at[low];
		words[4].at[low] = last;
	}
	memmove(words[4].at + plain, words[4].at + words[0].count - tables, tables * 8);
	result = Py_BuildValue("nnn", (Py_ssize_t)plain, (Py_ssize_t)zero, (Py_ssize_t)tables);
end:
	while (taken--)
		PyBuffer_Release(&words[taken].view);
	PyBuffer_Release(&zeros);
	return result;
}

/* read_pages(fd, address, places): pages at offsets of a file, one after the other to an address. */
static PyObject *read_pages(PyObject *self, PyObject *arguments)
{
	PyObject *places_object;
	unsigned long long address;
	struct words places;
	int fd, error = 0;

	(void)self;
	if (!PyArg_ParseTuple(arguments, "iKO", &fd, &address, &places_object))
		return NULL;
	if (!take_words(places_object, &places, 0))
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	for (size_t i = 0, row; i < places.count && !error; i += row) {
		for (row = 1; i + row < places.count; row++)
			if (places.at[i + row] != places.at[i] + row * PAGE)
				break;
		error = read_all(fd, (uint8_t *)(uintptr_t)address + i * PAGE, row * PAGE, places.at[i]);
	}
	Py_END_ALLOW_THREADS
	PyBuffer_Release(&places.view);
	if (error) {
		errno = error;
		return PyErr_SetFromErrno(PyExc_OSError);
	}
	return Py_NewRef(Py_None);
}

/* copy_pages(address, data, places): pages of data, one after the other to an address. */
static PyObject *copy_pages(PyObject *self, PyObject *arguments)
{
	PyObject *data_object, *offsets_object, *result = NULL;
	unsigned long long address;
	struct words offsets;
	Py_buffer data;

	(void)self;
	if (!PyArg_ParseTuple(arguments, "KOO", &address, &data_object, &offsets_object))
		return NULL;
	if (PyObject_GetBuffer(data_object, &data, PyBUF_SIMPLE) < 0)
		return NULL;
	if (!take_words(offsets_object, &offsets, 0))
		goto without_offsets;
	for (size_t i = 0; i < offsets.count; i++)
		if (offsets.at[i] > (uint64_t)data.len || (uint64_t)data.len - offsets.at[i] < PAGE) {
			PyErr_SetString(PyExc_ValueError, "an offset is out of range");
			goto end;
		}
	Py_BEGIN_ALLOW_THREADS
	for (size_t i = 0; i < offsets.count; i++)
		memcpy((uint8_t *)(uintptr_t)address + i * PAGE, (const uint8_t *)data.buf + offsets.at[i],
		       PAGE);
	Py_END_ALLOW_THREADS
	result = Py_NewRef(Py_None);
end:
	PyBuffer_Release(&offsets.view);
without_offsets:
	PyBuffer_Release(&data);
	return result;
}

/* gather(table, indices, out): out[i] = table[indices[i]]; ValueError if one has no frame. */
static PyObject *gather(PyObject *self, PyObject *arguments)
{
	PyObject *table_object, *indices_object, *out_object, *result = NULL;
	struct words table, indices, out;

	(void)self;
	if (!PyArg_ParseTuple(arguments, "OOO", &table_object, &indices_object, &out_object))
		return NULL;
	if (!take_words(table_object, &table, 0))
		return NULL;
	if (!take_words(indices_object, &indices, 0))
		goto without_indices;
	if (!take_words(out_object, &out, 1))
		goto without_out;
	if (out.count < indices.count) {
		PyErr_SetString(PyExc_ValueError, "a buffer is too small");
		goto end;
	}
	for (size_t i = 0; i < indices.count; i++) {
		if (indices.at[i] >= table.count || table.at[indices.at[i]] == INVALID) {
			PyErr_Format(PyExc_ValueError, "pfn %llu has no frame",
				     (unsigned long long)indices.at[i]);
			goto end;
		}
		out.at[i] = table.at[indices.at[i]];
	}
	result = Py_NewRef(Py_None);
end:
	PyBuffer_Release(&out.view);
without_out:
	PyBuffer_Release(&indices.view);
without_indices:
	PyBuffer_Release(&table.view);
	return result;
}

/* missing(tables, p2m, out): the pfns that page tables point to and that have no frame.
 *
 * out: words; no more than it holds are told, each once; ask again after they have frames. Returns
 * their count; ValueError if an entry points beyond the guest's last pfn. */
static PyObject *missing(PyObject *self, PyObject *arguments)
{
	PyObject *tables_object, *p2m_object, *out_object, *result = NULL;
	struct words tables, p2m, out;
	size_t count = 0;
	uint64_t beyond = 0;

	(void)self;
	if (!PyArg_ParseTuple(arguments, "OOO", &tables_object, &p2m_object, &out_object))
		return NULL;
	if (!take_words(tables_object, &tables, 0))
		return NULL;
	if (!take_words(p2m_object, &p2m, 1))
		goto without_p2m;
	if (!take_words(out_object, &out, 1))
		goto without_out;
	for (size_t i = 0; i < tables.count && count < out.count; i++) {
		uint64_t pfn = (tables.at[i] & FRAME_MASK) / PAGE;

		if (!(tables.at[i] & PRESENT))
			continue;
		if (pfn >= p2m.count) {
			beyond = pfn;
			break;
		}
		if (p2m.at[pfn] == INVALID) {
			p2m.at[pfn] = INVALID - 1;
			out.at[count++] = pfn;
		}
	}
	for (size_t i = 0; i < count; i++)
		p2m.at[out.at[i]] = INVALID;
	if (beyond)
		PyErr_Format(PyExc_ValueError, "a page table points to pfn %llu, the last one is %llu",
			     (unsigned long long)beyond, (unsigned long long)p2m.count - 1);
	else
		result = PyLong_FromSize_t(count);
	PyBuffer_Release(&out.view);
without_out:
	PyBuffer_Release(&p2m.view);
without_p2m:
	PyBuffer_Release(&tables.view);
	return result;
}

/* localise(tables, p2m): in present entries of page tables, frames for pfns.
 *
 * ``missing`` comes first. ValueError, before anything is changed, if a pfn has no frame. */
static PyObject *localise(PyObject *self, PyObject *arguments)
{
	PyObject *tables_object, *p2m_object, *result = NULL;
	struct words tables, p2m;

	(void)self;
	if (!PyArg_ParseTuple(arguments, "OO", &tables_object, &p2m_object))
		return NULL;
	if (!take_words(tables_object, &tables, 1))
		return NULL;
	if (!take_words(p2m_object, &p2m, 0))
		goto without_p2m;
	for (size_t i = 0; i < tables.count; i++) {
		uint64_t pfn = (tables.at[i] & FRAME_MASK) / PAGE;

		if ((tables.at[i] & PRESENT) && (pfn >= p2m.count || p2m.at[pfn] == INVALID)) {
			PyErr_Format(PyExc_ValueError, "a page table points to pfn %llu, which has no frame",
				     (unsigned long long)pfn);
			goto end;
		}
	}
	for (size_t i = 0; i < tables.count; i++)
		if (tables.at[i] & PRESENT)
			tables.at[i] = (tables.at[i] & ~FRAME_MASK) |
				       p2m.at[(tables.at[i] & FRAME_MASK) / PAGE] * PAGE;
	result = Py_NewRef(Py_None);
end:
	PyBuffer_Release(&p2m.view);
without_p2m:
	PyBuffer_Release(&tables.view);
	return result;
}

/* operations(command, frames): struct mmuext_op {u32 command, pad, u64 frame, u64 0} for each. */
static PyObject *operations(PyObject *self, PyObject *arguments)
{
	PyObject *frames_object, *result;
	unsigned command;
	struct words frames;
	uint64_t *at;

	(void)self;
	if (!PyArg_ParseTuple(arguments, "IO", &command, &frames_object))
		return NULL;
	if (!take_words(frames_object, &frames, 0))
		return NULL;
	result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(frames.count * 24));
	if (result) {
		at = (void *)PyBytes_AsString(result);
		for (size_t i = 0; i < frames.count; i++) {
			at[3 * i] = command;
			at[3 * i + 1] = frames.at[i];
			at[3 * i + 2] = 0;
		}
	}
	PyBuffer_Release(&frames.view);
	return result;
}

/* pinned(types, level, out): the pfns of page tables of a level that are to be pinned. */
static PyObject *pinned(PyObject *self, PyObject *arguments)
{
	PyObject *types_object, *out_object, *result = NULL;
	unsigned level;
	Py_buffer types;
	struct words out;
	size_t count = 0;

	(void)self;
	if (!PyArg_ParseTuple(arguments, "OIO", &types_object, &level, &out_object))
		return NULL;
	if (PyObject_GetBuffer(types_object, &types, PyBUF_SIMPLE) < 0)
		return NULL;
	if (!take_words(out_object, &out, 1))
		goto without_out;
	for (Py_ssize_t pfn = 0; pfn < types.len; pfn++)
		if (((const uint8_t *)types.buf)[pfn] == (PIN | level)) {
			if (count == out.count) {
				PyErr_SetString(PyExc_ValueError, "a buffer is too small");
				goto end;
			}
			out.at[count++] = (uint64_t)pfn;
		}
	result = PyLong_FromSize_t(count);
end:
	PyBuffer_Release(&out.view);
without_out:
	PyBuffer_Release(&types);
	return result;
}

/* describe(types, frames, first, entries, mapped): entries of a PAGE_DATA record for a row of pfns.
 *
 * types: a word for each pfn from ``first`` on, its XEN_DOMCTL_PFINFO_*; frames: its frame. Fills
 * entries {type << 60 | pfn}, and mapped with the frames of those that have a page of data. Returns
 * how many these are; ValueError names the first whose type is unknown. */
static PyObject *describe(PyObject *self, PyObject *arguments)
{
	PyObject *objects[4], *result = NULL; /* types, frames, entries, mapped */
	struct words words[4];
	unsigned long long first;
	size_t count = 0;
	int taken = 0;

	(void)self;
	if (!PyArg_ParseTuple(arguments, "OOKOO", &objects[0], &objects[1], &first, &objects[2],
			      &objects[3]))
		return NULL;
	for (; taken < 4; taken++)
		if (!take_words(objects[taken], &words[taken], taken > 1))
			goto end;
	for (int i = 1; i < 4; i++)
		if (words[i].count < words[0].count) {
			PyErr_SetString(PyExc_ValueError, "a buffer is too small");
			goto end;
		}
	for (size_t i = 0; i < words[0].count; i++) {
		uint64_t type = words[0].at[i] >> TYPE_SHIFT;

		if (words[0].at[i] & TYPE_REST || type > XTAB || (type > L4TAB && type <= PIN)) {
			PyErr_Format(PyExc_ValueError, "pfn %llu has the unknown type %llu", first + i,
				     (unsigned long long)words[0].at[i]);
			goto end;
		}
		words[2].at[i] = type << 60 | (first + i);
		if (type < BROKEN)
			words[3].at[count++] = words[1].at[i];
	}
	result = PyLong_FromSize_t(count);
end:
	while (taken--)
		PyBuffer_Release(&words[taken].view);
	return result;
}

/* runs(data, entries, look, as_hvm, out, tables): which pages of a record are alike, in a row.
 *
 * data: the pages of those entries {type << 60 | pfn} that have one; look: whether zero pages are
 * told from others; as_hvm: tables are plain data. Fills out with words {length << 2 | kind}, kind 0
 * for zero pages, 1 for plain ones, 2 for page tables; and tables with {type << 60 | index in data}
 * of each page table. Both have room for as many words as there are entries. Returns the two
 * counts. */
static PyObject *runs(PyObject *self, PyObject *arguments)
{
	PyObject *data_object, *objects[3], *result = NULL; /* entries, out, tables */
	struct words words[3];
	Py_buffer data;
	size_t page = 0, count = 0, tables = 0;
	int taken = 0, look, as_hvm;

	(void)self;
	if (!PyArg_ParseTuple(arguments, "OOppOO", &data_object, &objects[0], &look, &as_hvm,
			      &objects[1], &objects[2]))
		return NULL;
	if (PyObject_GetBuffer(data_object, &data, PyBUF_SIMPLE) < 0)
		return NULL;
	for (; taken < 3; taken++)
		if (!take_words(objects[taken], &words[taken], taken > 0))
			goto end;
	for (size_t i = 0; i < words[0].count; i++)
		page += words[0].at[i] >> 60 < BROKEN;
	if (words[1].count < words[0].count || words[2].count < words[0].count ||
	    (size_t)data.len / PAGE < page || (uintptr_t)data.buf % 8) {
		PyErr_SetString(PyExc_ValueError, "a buffer is too small");
		goto end;
	}
	page = 0;
	Py_BEGIN_ALLOW_THREADS
	for (size_t i = 0; i < words[0].count; i++) {
		unsigned type = (unsigned)(words[0].at[i] >> 60);
		uint64_t kind = 1;

		if (type >= BROKEN)
			continue;
		if (!as_hvm && is_table(type)) {
			kind = 2;
			words[2].at[tables++] = (uint64_t)type << 60 | page;
		} else if (look && is_zero((const uint8_t *)data.buf + page * PAGE))
			kind = 0;
		if (count && (words[1].at[count - 1] & 3) == kind)
			words[1].at[count - 1] += 4;
		else
			words[1].at[count++] = 4 | kind;
		page++;
	}
	Py_END_ALLOW_THREADS
	result = Py_BuildValue("nn", (Py_ssize_t)count, (Py_ssize_t)tables);
end:
	while (taken--)
		PyBuffer_Release(&words[taken].view);
	PyBuffer_Release(&data);
	return result;
}

/* The first of a page table's entries that are Xen's own, and the one behind the last.
 *
 * A 64-bit guest has them in its L4 tables. Of a 32-bit one's L3 tables only four entries are its
 * own, and one of its L2 tables begins Xen's part with the frame of the m2p for such guests. */
static void xen_entries(unsigned level, unsigned levels, const uint64_t *table, uint64_t compat,
			size_t *first, size_t *end)
{
	*first = *end = 0;
	if (levels == 4 && level == 4) {
		*first = 256;
		*end = 272;
	} else if (levels == 3 && level == 3) {
		*first = 4;
		*end = ENTRIES;
	} else if (levels == 3 && level == 2 && (table[428] & FRAME_MASK) / PAGE == compat) {
		*first = 428;
		*end = ENTRIES;
	}
}

/* One page table; 0 if all is well, else what is wrong with the entry that *at is set to. */
static const char *normalise_one(const uint64_t *table, uint64_t *out, unsigned level,
				 unsigned levels, uint64_t compat, const struct words *m2p,
				 const struct words *p2m, size_t *at)
{
	size_t first, end;

	xen_entries(level, levels, table, compat, &first, &end);
	for (size_t i = 0; i < ENTRIES; i++) {
		uint64_t entry = i >= first && i < end ? 0 : table[i];
		uint64_t frame = (entry & FRAME_MASK) / PAGE, pfn;

		*at = i;
		if (entry & PRESENT) {
			if (level > 1 && entry & SUPERPAGE)
				return "maps a superpage";
			pfn = frame < m2p->count ? m2p->at[frame] : INVALID;
			if (pfn >= p2m->count || p2m->at[pfn] != frame)
				return "maps a frame that is not the guest's";
			entry = (entry & ~FRAME_MASK) | pfn * PAGE;
		}
		out[i] = entry;
	}
	return NULL;
}

/* normalise(data, tables, levels, compat, m2p, p2m, out): page tables with pfns for frames.
 *
 * tables: words {type << 60 | index of the page in data}; levels: 4 or 3, of the guest; compat: the
 * first frame of the m2p that Xen shows to 32-bit guests. out: a page for each. Xen's own entries
 * become zero. ValueError if an entry is of a frame that the guest does not have, or of a
 * superpage. */
static PyObject *normalise(PyObject *self, PyObject *arguments)
{
	PyObject *data_object, *objects[4], *result = NULL; /* tables, m2p, p2m, out */
	struct words words[4];
	Py_buffer data;
	unsigned levels;
	unsigned long long compat;
	const char *problem = NULL;
	size_t table = 0, entry = 0;
	int taken = 0;

	(void)self;
	if (!PyArg_ParseTuple(arguments, "OOIKOOO", &data_object, &objects[0], &levels, &compat,
			      &objects[1], &objects[2], &objects[3]))
		return NULL;
	if (PyObject_GetBuffer(data_object, &data, PyBUF_SIMPLE) < 0)
		return NULL;
	for (; taken < 4; taken++)
		if (!take_words(objects[taken], &words[taken], taken == 3))
			goto end;
	for (size_t i = 0; i < words[0].count; i++)
		if ((words[0].at[i] & PFN_MASK) >= (size_t)data.len / PAGE ||
		    words[3].count / ENTRIES < words[0].count || (uintptr_t)data.buf % 8) {
			PyErr_SetString(PyExc_ValueError, "a buffer is too small");
			goto end;
		}
	Py_BEGIN_ALLOW_THREADS
	for (; table < words[0].count && !problem; table++) {
		const uint8_t *page = (const uint8_t *)data.buf + (words[0].at[table] & PFN_MASK) * PAGE;

		problem = normalise_one((const void *)page, words[3].at + table * ENTRIES,
					(unsigned)(words[0].at[table] >> 60) & 7, levels, compat,
					&words[1], &words[2], &entry);
	}
	Py_END_ALLOW_THREADS
	if (problem)
		PyErr_Format(PyExc_ValueError, "entry %zu of a page table of level %u %s", entry,
			     (unsigned)(words[0].at[table - 1] >> 60) & 7, problem);
	else
		result = Py_NewRef(Py_None);
end:
	while (taken--)
		PyBuffer_Release(&words[taken].view);
	PyBuffer_Release(&data);
	return result;
}

static PyMethodDef functions[] = {
	{"highest", highest, METH_O, NULL},
	{"classify", classify, METH_VARARGS, NULL},
	{"unpopulated", unpopulated, METH_VARARGS, NULL},
	{"scatter", scatter, METH_VARARGS, NULL},
	{"gather", gather, METH_VARARGS, NULL},
	{"superpages", superpages, METH_VARARGS, NULL},
	{"find_zeros", find_zeros, METH_VARARGS, NULL},
	{"find_zeros_in_file", find_zeros_in_file, METH_VARARGS, NULL},
	{"place_pages", place_pages, METH_VARARGS, NULL},
	{"read_pages", read_pages, METH_VARARGS, NULL},
	{"copy_pages", copy_pages, METH_VARARGS, NULL},
	{"missing", missing, METH_VARARGS, NULL},
	{"localise", localise, METH_VARARGS, NULL},
	{"operations", operations, METH_VARARGS, NULL},
	{"pinned", pinned, METH_VARARGS, NULL},
	{"describe", describe, METH_VARARGS, NULL},
	{"runs", runs, METH_VARARGS, NULL},
	{"normalise", normalise, METH_VARARGS, NULL},
	{NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
	PyModuleDef_HEAD_INIT, "_native", "Loops over pages; see loops_slow.py", -1, functions,
	NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__native(void)
{
	return PyModule_Create(&module);
}
