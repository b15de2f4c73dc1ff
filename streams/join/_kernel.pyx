# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Compiled short ways of the batch step: usual events are read, and applied to their units' stored bytes.

The three functions at the ends of the sections are those of :class:`streams.join.kernel.Kernel`. Each does
what a Python function of the join does, and hands it every record or unit that is not usual, before anything
is done with it. What is usual, and why it may be counted at once, is said there; tests run every step of
theirs with and without this module and want the same bytes.

Why bytes: an exposure adds one trial or one touch to one block of its unit. Here the block is found in the
stored MessagePack (layout in ``streams.join.unit``), the new entry is written behind the others, and the rest
is copied; no object is made of what does not change. Anything in the bytes that is not exactly the layout is
unusual; so are texts that are not ASCII. The same goes for JSON: strings of printable ASCII without escapes
and whole numbers are read here.

Cost: see docs/performance.md.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItem
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport INT64_MAX, int8_t, int16_t, int32_t, int64_t, uint8_t, uint64_t
from libc.string cimport memcmp, memcpy

from streams.join.cells import HOUR_MS as _HOUR_MS
from streams.join.cells import NEVER_MS as _NEVER_MS
from streams.join.cells import NO_ALLOCATION as _NO_ALLOCATION
from streams.join.tally import Increments

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL

cdef enum:
    LAYOUT = 1
    MAX_BLOCKS = 256
    MAX_TRIALS = 256
    MAX_FRESH = 64
    MAX_EVENTS = 64  # a unit of more events is hot: it has its own way, with an index of ids
    HEAD_BYTES = 64  # more than all heads and integers of a unit, a block or a trial together

cdef int64_t HOUR_MS = _HOUR_MS
cdef int64_t NEVER_MS = _NEVER_MS
cdef int64_t NO_ALLOCATION = _NO_ALLOCATION
cdef object NO_TEXT = ""


# Reading MessagePack: every function leaves ``bad`` set at the first byte that is not as expected.

cdef struct Span:
    const uint8_t* at
    Py_ssize_t size


cdef struct Cursor:
    const uint8_t* at
    const uint8_t* end
    bint bad


cdef inline uint64_t take_number(Cursor* c, int n_bytes) noexcept:
    cdef uint64_t number = 0
    cdef int i
    if c.end - c.at < n_bytes:
        c.bad = True
        return 0
    for i in range(n_bytes):
        number = number << 8 | c.at[i]
    c.at += n_bytes
    return number


cdef inline uint8_t take_byte(Cursor* c) noexcept:
    return <uint8_t>take_number(c, 1)


cdef inline int64_t take_int(Cursor* c) noexcept:
    cdef uint8_t first = take_byte(c)
    cdef uint64_t number
    if first < 0x80:
        return first
    if first >= 0xE0:
        return <int8_t>first
    if 0xCC <= first <= 0xCF:
        number = take_number(c, 1 << (first - 0xCC))
        if number > <uint64_t>INT64_MAX:
            c.bad = True
        return <int64_t>number
    if first == 0xD0:
        return <int8_t>take_number(c, 1)
    if first == 0xD1:
        return <int16_t>take_number(c, 2)
    if first == 0xD2:
        return <int32_t>take_number(c, 4)
    if first == 0xD3:
        return <int64_t>take_number(c, 8)
    c.bad = True
    return 0


cdef inline Py_ssize_t take_size(
    Cursor* c, uint8_t fix, uint8_t fix_bits, uint8_t code, int n_codes
) noexcept:
    """Size of an array, map or text: ``fix`` with the size in its low bits, or one of the codes that ends
    with 32 bits."""
    cdef uint8_t first = take_byte(c)
    if fix_bits and first & ~((1 << fix_bits) - 1) & 0xFF == fix:
        return first & ((1 << fix_bits) - 1)
    if code <= first < code + n_codes:
        return <Py_ssize_t>take_number(c, 4 >> (n_codes - 1 - (first - code)))
    c.bad = True
    return 0


cdef inline Py_ssize_t take_array(Cursor* c) noexcept:
    return take_size(c, 0x90, 4, 0xDC, 2)


cdef inline Py_ssize_t take_map(Cursor* c) noexcept:
    return take_size(c, 0x80, 4, 0xDE, 2)


cdef inline Span take_bytes(Cursor* c, Py_ssize_t size) noexcept:
    cdef Span span
    if c.end - c.at < size:
        c.bad = True
        size = 0
    span.at = c.at
    span.size = size
    c.at += size
    return span


cdef inline Span take_text(Cursor* c) noexcept:
    """A text, which must be ASCII: whether other bytes are UTF-8 is the decoder's to say."""
    cdef Span span = take_bytes(c, take_size(c, 0xA0, 5, 0xD9, 3))
    cdef Py_ssize_t i
    cdef uint8_t bits = 0
    for i in range(span.size):
        bits |= span.at[i]
    if bits & 0x80:
        c.bad = True
    return span


cdef inline Span take_blob(Cursor* c) noexcept:
    return take_bytes(c, take_size(c, 0, 0, 0xC4, 3))


cdef inline bint take_nil(Cursor* c) noexcept:
    """Whether a nil comes next; taken if so."""
    if c.at < c.end and c.at[0] == 0xC0:
        c.at += 1
        return True
    return False


cdef inline bint take_bool(Cursor* c) noexcept:
    cdef uint8_t first = take_byte(c)
    if first != 0xC2 and first != 0xC3:
        c.bad = True
    return first == 0xC3


cdef inline Span take_earned(Cursor* c) noexcept:
    """Bytes of a map from metric to micro-units, or of nil."""
    cdef Span span
    cdef Py_ssize_t n
    span.at = c.at
    if not take_nil(c):
        n = take_map(c)
        while n > 0 and not c.bad:
            take_text(c)
            take_int(c)
            n -= 1
    span.size = c.at - span.at
    return span


cdef inline Cursor over(Span span) noexcept:
    cdef Cursor c
    c.at = span.at
    c.end = span.at + span.size
    c.bad = False
    return c


cdef inline int compare(Span a, Span b) noexcept:
    """Order of two texts; that of UTF-8 bytes is that of their characters."""
    cdef Py_ssize_t shorter = a.size if a.size < b.size else b.size
    cdef int order = memcmp(a.at, b.at, shorter)
    if order:
        return order
    return (a.size > b.size) - (a.size < b.size)


cdef inline bint same(Span a, Span b) noexcept:
    return a.size == b.size and memcmp(a.at, b.at, a.size) == 0


cdef inline Span text_of(object text) except *:
    """UTF-8 of a str, which must outlive the span."""
    cdef Span span
    cdef Py_ssize_t size
    span.at = <const uint8_t*>PyUnicode_AsUTF8AndSize(text, &size)
    span.size = size
    return span


cdef inline object str_of(Span span):
    return PyUnicode_DecodeUTF8(<const char*>span.at, span.size, NULL)


# Writing MessagePack, each number in as few bytes as it needs, into a buffer with room enough.

cdef struct Out:
    uint8_t* data
    Py_ssize_t size
    Py_ssize_t capacity


cdef int reserve(Out* out, Py_ssize_t more) except -1:
    cdef Py_ssize_t wanted = out.size + more
    cdef uint8_t* grown
    if wanted > out.capacity:
        wanted = max(2 * out.capacity, wanted)
        grown = <uint8_t*>PyMem_Realloc(out.data, wanted)
        if grown is NULL:
            raise MemoryError
        out.data = grown
        out.capacity = wanted
    return 0


cdef inline void put_byte(Out* out, uint8_t byte) noexcept:
    out.data[out.size] = byte
    out.size += 1


cdef inline void put_number(Out* out, uint8_t code, uint64_t number, int n_bytes) noexcept:
    put_byte(out, code)
    while n_bytes > 0:
        n_bytes -= 1
        put_byte(out, <uint8_t>(number >> (8 * n_bytes)))


cdef inline void put_int(Out* out, int64_t number) noexcept:
    if number >= 0:
        if number < 0x80:
            put_byte(out, <uint8_t>number)
        elif number <= 0xFF:
            put_number(out, 0xCC, number, 1)
        elif number <= 0xFFFF:
            put_number(out, 0xCD, number, 2)
        elif number <= 0xFFFFFFFF:
            put_number(out, 0xCE, number, 4)
        else:
            put_number(out, 0xCF, number, 8)
    elif number >= -32:
        put_byte(out, <uint8_t><int8_t>number)
    elif number >= -0x80:
        put_number(out, 0xD0, <uint64_t>number, 1)
    elif number >= -0x8000:
        put_number(out, 0xD1, <uint64_t>number, 2)
    elif number >= -0x80000000LL:
        put_number(out, 0xD2, <uint64_t>number, 4)
    else:
        put_number(out, 0xD3, <uint64_t>number, 8)


cdef inline void put_size(
    Out* out, Py_ssize_t size, uint8_t fix, uint8_t n_fix, uint8_t code, int n_codes
) noexcept:
    if size < n_fix:
        put_byte(out, <uint8_t>(fix | size))
    elif n_codes == 3 and size <= 0xFF:
        put_number(out, code, size, 1)
    elif size <= 0xFFFF:
        put_number(out, code + n_codes - 2, size, 2)
    else:
        put_number(out, code + n_codes - 1, size, 4)


cdef inline void put_array(Out* out, Py_ssize_t size) noexcept:
    put_size(out, size, 0x90, 16, 0xDC, 2)


cdef inline void put_map(Out* out, Py_ssize_t size) noexcept:
    put_size(out, size, 0x80, 16, 0xDE, 2)


cdef inline void put_raw(Out* out, Span span) noexcept:
    memcpy(out.data + out.size, span.at, span.size)
    out.size += span.size


cdef inline void put_text(Out* out, Span span) noexcept:
    put_size(out, span.size, 0xA0, 32, 0xD9, 3)
    put_raw(out, span)


cdef inline void put_blob(Out* out, Span span) noexcept:
    put_size(out, span.size, 0, 0, 0xC4, 3)
    put_raw(out, span)


# The stored unit

cdef struct BlockRef:
    Span key
    Span body  # in the state before
    Py_ssize_t changed_at  # in the arena, -1 while it is as before
    Py_ssize_t changed_size


cdef struct Unit:
    int64_t due_ms
    int64_t settled_ms
    int64_t last_conversion_ms
    int64_t n_events
    Py_ssize_t n_blocks
    Span conversions


cdef struct Trial:
    Span head  # the trial's bytes before ``others``
    int64_t version
    int64_t first_ms
    Span first_id
    Span arm
    Span segment
    int64_t group
    int64_t allocation
    Py_ssize_t n_others
    Span others  # entries
    Span base
    Span earned


cdef struct Block:
    Py_ssize_t n_trials
    Span trials  # entries
    bint has_mark
    int64_t mark_ms
    int64_t mark_version
    Span mark_arm
    Span mark_segment
    int64_t mark_group
    int64_t mark_allocation
    Span mark_base
    Span mark
    bint is_closed
    Span earned


cdef BlockRef _blocks[MAX_BLOCKS]
cdef Trial _trials[MAX_TRIALS]
cdef Out _arena  # blocks that a call has changed
cdef Out _state  # the state that a call returns
_arena.data = _state.data = NULL
_arena.size = _arena.capacity = _state.size = _state.capacity = 0


cdef bint take_unit(object raw, Unit* unit) except -1:
    """Read a unit's state; False if it is not just as the layout says."""
    cdef Cursor c
    cdef Py_ssize_t i
    _arena.size = 0
    if raw is None:
        unit.due_ms = NEVER_MS
        unit.settled_ms = unit.n_events = 0
        unit.last_conversion_ms = -1
        unit.n_blocks = 0
        unit.conversions.at = NULL
        unit.conversions.size = 0
        return True
    c.at = <const uint8_t*>PyBytes_AS_STRING(raw)
    c.end = c.at + PyBytes_GET_SIZE(raw)
    c.bad = False
    if take_byte(&c) != LAYOUT or take_array(&c) != 6:
        return False
    unit.due_ms = take_int(&c)
    unit.settled_ms = take_int(&c)
    unit.last_conversion_ms = take_int(&c)
    unit.n_events = take_int(&c)
    unit.n_blocks = take_map(&c)
    if unit.n_blocks >= MAX_BLOCKS:
        return False
    for i in range(unit.n_blocks):
        _blocks[i].key = take_text(&c)
        _blocks[i].body = take_blob(&c)
        _blocks[i].changed_at = -1
    unit.conversions = take_blob(&c)
    return not c.bad and c.at == c.end


cdef inline Span body_of(BlockRef* block) noexcept:
    cdef Span span
    if block.changed_at < 0:
        return block.body
    span.at = _arena.data + block.changed_at
    span.size = block.changed_size
    return span


cdef object state_of(Unit* unit):
    """Bytes of a unit, with its changed blocks."""
    cdef Py_ssize_t i, wanted = 2 * HEAD_BYTES + unit.conversions.size
    cdef Span body
    for i in range(unit.n_blocks):
        wanted += _blocks[i].key.size + body_of(&_blocks[i]).size + HEAD_BYTES
    _state.size = 0
    reserve(&_state, wanted)
    put_byte(&_state, LAYOUT)
    put_array(&_state, 6)
    put_int(&_state, unit.due_ms)
    put_int(&_state, unit.settled_ms)
    put_int(&_state, unit.last_conversion_ms)
    put_int(&_state, unit.n_events)
    put_map(&_state, unit.n_blocks)
    for i in range(unit.n_blocks):
        put_text(&_state, _blocks[i].key)
        put_blob(&_state, body_of(&_blocks[i]))
    put_blob(&_state, unit.conversions)
    return PyBytes_FromStringAndSize(<char*>_state.data, _state.size)


cdef inline void take_trial(Cursor* c, Trial* trial) noexcept:
    cdef Py_ssize_t i
    trial.head.at = c.at
    if take_array(c) != 10:
        c.bad = True
        return
    trial.version = take_int(c)
    trial.first_ms = take_int(c)
    trial.first_id = take_text(c)
    trial.arm = take_text(c)
    trial.segment = take_text(c)
    trial.group = take_int(c)
    trial.allocation = take_int(c)
    trial.head.size = c.at - trial.head.at
    trial.n_others = take_array(c)
    trial.others.at = c.at
    for i in range(trial.n_others):
        take_other(c)
        if c.bad:
            return
    trial.others.size = c.at - trial.others.at
    trial.base = take_earned(c)
    trial.earned = take_earned(c)


cdef struct Other:
    int64_t ms
    Span exposure_id
    Span arm


cdef inline Other take_other(Cursor* c) noexcept:
    cdef Other other
    if take_array(c) != 3:
        c.bad = True
    other.ms = take_int(c)
    other.exposure_id = take_text(c)
    other.arm = take_text(c)
    return other


cdef bint take_block(Span body, Block* block) noexcept:
    """Read a block, its trials into ``_trials``; False if it is not just as the layout says."""
    cdef Cursor c = over(body)
    cdef Py_ssize_t i
    if take_array(&c) != 4:
        return False
    block.n_trials = take_array(&c)
    if c.bad or block.n_trials >= MAX_TRIALS:
        return False
    block.trials.at = c.at
    for i in range(block.n_trials):
        take_trial(&c, &_trials[i])
        if c.bad:
            return False
    block.trials.size = c.at - block.trials.at
    block.mark.at = c.at
    block.has_mark = not take_nil(&c)
    if block.has_mark:
        if take_array(&c) != 7:
            return False
        block.mark_ms = take_int(&c)
        block.mark_version = take_int(&c)
        block.mark_arm = take_text(&c)
        block.mark_segment = take_text(&c)
        block.mark_group = take_int(&c)
        block.mark_allocation = take_int(&c)
        block.mark_base = take_earned(&c)
    block.mark.size = c.at - block.mark.at
    block.is_closed = take_bool(&c)
    block.earned = take_earned(&c)
    return not c.bad and c.at == c.end


# Reading JSON: only what needs no second look. Anything else is the decoder's, which knows what to say of it.

cdef inline void skip_space(Cursor* c) noexcept:
    while c.at < c.end and (c.at[0] == 32 or 9 <= c.at[0] <= 10 or c.at[0] == 13):
        c.at += 1


cdef inline bint take_char(Cursor* c, uint8_t wanted) noexcept:
    """Take a character and the space before it, if it comes next."""
    skip_space(c)
    if c.at < c.end and c.at[0] == wanted:
        c.at += 1
        return True
    return False


cdef inline Span take_quoted(Cursor* c) noexcept:
    """A string of printable ASCII without escapes."""
    cdef Span span
    if not take_char(c, 34):
        c.bad = True
    span.at = c.at
    while c.at < c.end and 32 <= c.at[0] < 127 and c.at[0] != 34 and c.at[0] != 92:
        c.at += 1
    span.size = c.at - span.at
    if c.at < c.end and c.at[0] == 34:
        c.at += 1
    else:
        c.bad = True
    return span


cdef inline Span take_identifier(Cursor* c) noexcept:
    cdef Span span = take_quoted(c)
    if not 1 <= span.size <= 256:
        c.bad = True
    return span


cdef inline bint take_word(Cursor* c, const char* word, Py_ssize_t size) noexcept:
    skip_space(c)
    if c.end - c.at >= size and memcmp(c.at, word, size) == 0:
        c.at += size
        return True
    return False


cdef inline int64_t take_digits(Cursor* c, int most) noexcept:
    """A whole number of at most so many digits, without sign, fraction and exponent."""
    cdef int64_t number = 0
    cdef int n = 0
    skip_space(c)
    while c.at < c.end and 48 <= c.at[0] <= 57 and n <= most:
        number = number * 10 + (c.at[0] - 48)
        n += 1
        c.at += 1
    if n == 0 or n > most or (n > 1 and c.at[-n] == 48):
        c.bad = True
    if c.at < c.end and (c.at[0] == 46 or c.at[0] | 32 == 101):
        c.bad = True
    return number


cdef inline void take_propensity(Cursor* c) noexcept:
    """A number greater than 0 and at most 1, written as 1, 1.000 or 0.123."""
    cdef bint is_whole, is_zero = True
    cdef int n = 0
    skip_space(c)
    if c.at >= c.end or not 48 <= c.at[0] <= 49:
        c.bad = True
        return
    is_whole = c.at[0] == 49
    c.at += 1
    if c.at < c.end and c.at[0] == 46:
        c.at += 1
        while c.at < c.end and 48 <= c.at[0] <= 57 and n <= 30:
            is_zero = is_zero and c.at[0] == 48
            n += 1
            c.at += 1
        if n == 0 or n > 30:
            c.bad = True
    if is_whole is not is_zero or (c.at < c.end and (48 <= c.at[0] <= 57 or c.at[0] | 32 == 101)):
        c.bad = True


cdef Span take_levels(Cursor* c) noexcept:
    """A flat object from names to strings, as it is written."""
    cdef Span span
    if not take_char(c, 123):
        c.bad = True
    span.at = c.at - 1
    if not take_char(c, 125):
        while not c.bad:
            take_quoted(c)
            if not take_char(c, 58):
                c.bad = True
            take_quoted(c)
            if take_char(c, 125):
                break
            if not take_char(c, 44):
                c.bad = True
    span.size = c.at - span.at
    return span


cdef object levels_in(Span context):
    """Names and levels of a context that :func:`take_levels` has read."""
    cdef Cursor c = over(context)
    levels: dict = {}
    if context.size == 0:
        return None
    take_char(&c, 123)
    if take_char(&c, 125):
        return levels
    while True:
        name = str_of(take_quoted(&c))
        take_char(&c, 58)
        levels[name] = str_of(take_quoted(&c))
        if not take_char(&c, 44):
            return levels


cdef enum:
    HAS_EXPOSURE_ID = 1
    HAS_EXPERIMENT_ID = 2
    HAS_UNIT_ID = 4
    HAS_TIMESTAMP = 8
    HAS_ALL = 15
    HAS_ARM_ID = 16
    HAS_PROPENSITY = 32
    HAS_ALLOCATION = 64
    HAS_CONTEXT = 128
    HAS_GROUP = 256
    HAS_REASON = 512
    HAS_TEST = 1024


cdef struct Event:
    Span exposure_id
    Span experiment_id
    Span unit_id
    Span arm_id  # empty: none
    Span context  # empty: none
    int64_t ms
    int64_t allocation
    bint is_comparison
    bint is_default
    bint is_test


cdef inline bint is_name(Span name, const char* wanted, Py_ssize_t size) noexcept:
    return name.size == size and memcmp(name.at, wanted, size) == 0


cdef int take_field(Cursor* c, Event* event) noexcept:
    """Read a field and its value; returns which it is, 0 if it is none that is known."""
    cdef Span name = take_quoted(c)
    cdef Span text
    if not take_char(c, 58):
        c.bad = True
    if is_name(name, b"exposure_id", 11):
        event.exposure_id = take_identifier(c)
        return HAS_EXPOSURE_ID
    if is_name(name, b"experiment_id", 13):
        event.experiment_id = take_identifier(c)
        return HAS_EXPERIMENT_ID
    if is_name(name, b"unit_id", 7):
        event.unit_id = take_identifier(c)
        return HAS_UNIT_ID
    if is_name(name, b"timestamp", 9):
        event.ms = take_digits(c, 15)
        return HAS_TIMESTAMP
    if is_name(name, b"test", 4):
        event.is_test = take_word(c, b"true", 4)
        if not event.is_test and not take_word(c, b"false", 5):
            c.bad = True
        return HAS_TEST
    if is_name(name, b"group", 5):
        text = take_quoted(c)
        event.is_comparison = is_name(text, b"comparison", 10)
        if not event.is_comparison and not is_name(text, b"bandit", 6):
            c.bad = True
        return HAS_GROUP
    return take_optional(c, event, name)


cdef int take_optional(Cursor* c, Event* event, Span name) noexcept:
    """Read the value of a field that may be null."""
    cdef bint is_null = take_word(c, b"null", 4)
    cdef Span text
    if is_name(name, b"arm_id", 6):
        if not is_null:
            event.arm_id = take_identifier(c)
        return HAS_ARM_ID
    if is_name(name, b"propensity", 10):
        if not is_null:
            take_propensity(c)
        return HAS_PROPENSITY
    if is_name(name, b"allocation_version", 18):
        if not is_null:
            event.allocation = take_digits(c, 18)
        return HAS_ALLOCATION
    if is_name(name, b"context", 7):
        if not is_null:
            event.context = take_levels(c)
        return HAS_CONTEXT
    if is_name(name, b"reason", 6):
        if not is_null:
            text = take_quoted(c)
            event.is_default = text.size >= 7 and memcmp(text.at, b"default", 7) == 0
        return HAS_REASON
    return 0


cdef bint take_event(object value, Event* event) noexcept:
    """Read an exposure; False if there is anything about it that the decoder should look at."""
    cdef Cursor c
    cdef int field, fields = 0
    c.at = <const uint8_t*>PyBytes_AS_STRING(value)
    c.end = c.at + PyBytes_GET_SIZE(value)
    c.bad = False
    event.exposure_id.size = event.experiment_id.size = event.unit_id.size = 0
    event.arm_id.size = event.context.size = 0
    event.exposure_id.at = event.experiment_id.at = event.unit_id.at = event.arm_id.at = c.at
    event.context.at = c.at
    event.ms = 0
    event.allocation = NO_ALLOCATION
    event.is_comparison = event.is_default = event.is_test = False
    if not take_char(&c, 123):
        return False
    while True:
        field = take_field(&c, event)
        if c.bad or not field or fields & field:
            return False
        fields |= field
        if take_char(&c, 125):
            break
        if not take_char(&c, 44):
            return False
    skip_space(&c)
    return c.at == c.end and fields & HAS_ALL == HAS_ALL and event.is_comparison == (event.arm_id.size == 0)


cdef enum:
    KEPT_ARMS = 8


cdef struct Plan:
    Span experiment_id  # of the plan's own string
    PyObject* plan
    PyObject* arms
    PyObject* version
    int64_t effective_from_ms
    bint counts_test
    bint has_features
    int n_kept  # arms, in the order in which they came up
    Span kept_texts[KEPT_ARMS]
    PyObject* kept[KEPT_ARMS]


cdef enum:
    PLANS = 256


cdef Plan _plans[PLANS]  # of the batch that is being read


cdef inline Py_ssize_t place_of(Span experiment_id) noexcept:
    """Where what is kept of an experiment for a batch stands."""
    cdef uint64_t mixed = 14695981039346656037u
    cdef Py_ssize_t i
    for i in range(experiment_id.size):
        mixed = (mixed ^ experiment_id.at[i]) * 1099511628211u
    return <Py_ssize_t>((mixed ^ mixed >> 32) % PLANS)


cdef Plan* plan_of(Span experiment_id, dict plans, list held) except? NULL:
    """Live experiment, which is then held; NULL if it is none."""
    cdef Plan* found = &_plans[place_of(experiment_id)]
    if found.plan is not NULL and same(found.experiment_id, experiment_id):
        return found
    plan = plans.get(str_of(experiment_id))
    if plan is None or not plan.is_live:
        return NULL
    held.append(plan)
    found.plan = <PyObject*>plan
    found.experiment_id = text_of(plan.experiment_id)
    arms, version = plan.arms, plan.newest
    found.arms = <PyObject*>arms
    found.version = <PyObject*>version
    found.effective_from_ms = version.effective_from_ms
    found.counts_test = version.count_test
    found.has_features = version.has_features
    found.n_kept = 0
    return found


cdef PyObject* arm_of(Plan* plan, Span arm_id) except? NULL:
    """The plan's own string of an arm; NULL if it has no such arm."""
    cdef int i
    cdef PyObject* arm
    for i in range(plan.n_kept):
        if same(plan.kept_texts[i], arm_id):
            return plan.kept[i]
    arm = PyDict_GetItem(<object>plan.arms, str_of(arm_id))
    if arm is not NULL and plan.n_kept < KEPT_ARMS:
        plan.kept[plan.n_kept] = arm
        plan.kept_texts[plan.n_kept] = text_of(<object>arm)
        plan.n_kept += 1
    return arm


cdef struct Exposure:
    # One that was read. What it points to is held by its ``Exposures``.
    int64_t offset
    int64_t floor_ms
    int64_t ms
    int64_t group
    int64_t allocation
    PyObject* plan
    PyObject* version
    PyObject* arm
    PyObject* segment
    Span exposure_id
    Span arm_text
    Span segment_text
    Py_ssize_t next  # of the same unit; -1: none
    # Set when it is applied:
    int64_t number  # of its version
    int64_t start_ms  # of the trials it may join
    int64_t end_ms


@cython.final
cdef class Exposures:
    """Exposures of one batch that were read, one behind the other."""

    cdef Exposure* at
    cdef Py_ssize_t size
    cdef Py_ssize_t capacity
    cdef list held  # records, and other objects that exposures point to
    cdef dict segments  # by the contexts as they are written

    def __cinit__(self, records):
        self.held = [records]
        self.segments = {}
        self.at = NULL
        self.size = self.capacity = 0

    def __dealloc__(self):
        PyMem_Free(self.at)

    cdef Exposure* more(self) except NULL:
        """Room for one more exposure; it is one when ``size`` says so."""
        cdef Exposure* grown
        if self.size == self.capacity:
            grown = <Exposure*>PyMem_Realloc(self.at, (2 * self.capacity + 64) * sizeof(Exposure))
            if grown is NULL:
                raise MemoryError
            self.at = grown
            self.capacity = 2 * self.capacity + 64
        return &self.at[self.size]

    def begin(self):
        """Return a new, empty group."""
        return new_group(self)


@cython.final
@cython.no_gc
@cython.freelist(8192)
cdef class Group:
    """Exposures of one unit, in offset order; see ``reading.ExposureItems``."""

    cdef Exposures exposures
    cdef Py_ssize_t first
    cdef Py_ssize_t last
    cdef Py_ssize_t size
    cdef list items  # instead, once there is one whose allocation is beyond 64 bits

    def __iter__(self):
        return iter(items_of(self))

    def append(self, tuple item):
        """Add one that was read in Python."""
        cdef Exposures exposures = self.exposures
        cdef Exposure* e = exposures.more()
        if self.items is not None or item[9] > INT64_MAX:
            self.items = items_of(self)
            self.items.append(item)
            return
        exposures.held.append(item)
        e.offset, e.floor_ms, e.ms, e.group, e.allocation = item[0], item[1], item[4], item[8], item[9]
        e.plan, e.version = <PyObject*>item[2], <PyObject*>item[3]
        e.arm, e.segment = <PyObject*>item[6], <PyObject*>item[7]
        e.exposure_id, e.arm_text, e.segment_text = text_of(item[5]), text_of(item[6]), text_of(item[7])
        take_in(self)


cdef inline Group new_group(Exposures exposures):
    cdef Group group = Group.__new__(Group)
    group.exposures = exposures
    group.first = group.last = -1
    group.size = 0
    return group


cdef inline void take_in(Group group) noexcept:
    """Take the exposure that ``more`` gave room for into a group."""
    cdef Exposures exposures = group.exposures
    cdef Py_ssize_t own = exposures.size
    exposures.at[own].next = -1
    if group.size:
        exposures.at[group.last].next = own
    else:
        group.first = own
    group.last = own
    group.size += 1
    exposures.size += 1


cdef list items_of(Group group):
    """Exposures of a group as Python has them."""
    cdef Py_ssize_t i = group.first
    cdef list items = group.items
    if items is None:
        items = []
        while i >= 0:
            items.append(item_of(&group.exposures.at[i]))
            i = group.exposures.at[i].next
    return items


cdef tuple item_of(Exposure* e):
    return (
        e.offset,
        e.floor_ms,
        <object>e.plan,
        <object>e.version,
        e.ms,
        str_of(e.exposure_id),
        <object>e.arm,
        <object>e.segment,
        e.group,
        e.allocation,
    )


cdef object segment_of(object reading, Plan* plan, Span context, dict segments):
    """Segment of an exposure; ``segments`` are those of the batch by the contexts as they are written."""
    version = <object>plan.version
    key = (version, PyBytes_FromStringAndSize(<char*>context.at, context.size))
    found = segments.get(key)
    if found is None:
        found = segments[key] = version.segmenter.segment(levels_in(context))
    if found[1]:
        reading.count_other((<object>plan.plan).experiment_id, found[1])
    return found[0]


cdef int64_t read_usual(
    object reading, tuple record, dict plans, dict groups, Exposures read, Times* times
) except -2:
    """Read a record; gives the running maximum after it, or -1, and nothing is done, if it is not usual."""
    cdef Event event
    cdef Plan* plan
    cdef Span own
    cdef PyObject* arm = <PyObject*>NO_TEXT
    cdef PyObject* found
    cdef Exposure* e
    cdef Group group
    key, value = record[1], record[2]
    if type(value) is not bytes or type(key) is not bytes or record[4] or not take_event(value, &event):
        return -1
    own.at = <const uint8_t*>PyBytes_AS_STRING(key)
    own.size = PyBytes_GET_SIZE(key)
    cdef int64_t floor_ms = times.maximum_ms - times.grace_ms
    if not same(own, event.unit_id) or not floor_ms <= event.ms <= <int64_t>record[3] + times.ahead_ms:
        return -1
    plan = plan_of(event.experiment_id, plans, read.held)
    if plan is NULL or event.ms < plan.effective_from_ms or (event.is_test and not plan.counts_test):
        return -1
    if event.arm_id.size:
        arm = arm_of(plan, event.arm_id)
        if arm is NULL:
            return -1
    e = read.more()
    e.offset = record[0]
    e.floor_ms = floor_ms
    e.ms = event.ms
    e.group = 1 if event.is_comparison else 2 if event.is_default else 0
    e.allocation = event.allocation
    e.plan, e.version, e.arm, e.segment = plan.plan, plan.version, arm, <PyObject*>NO_TEXT
    e.exposure_id, e.arm_text, e.segment_text = event.exposure_id, event.arm_id, text_of(NO_TEXT)
    if plan.has_features:
        segment = segment_of(reading, plan, event.context, read.segments)
        e.segment, e.segment_text = <PyObject*>segment, text_of(segment)
    found = PyDict_GetItem(groups, key)
    if found is NULL:
        group = new_group(read)
        groups[key] = group
    else:
        group = <Group>found
    if group.items is None:
        take_in(group)
    else:
        group.items.append(item_of(e))
    return max(times.maximum_ms, event.ms)


cdef struct Times:
    int64_t maximum_ms
    int64_t grace_ms
    int64_t ahead_ms


def read_exposures(object reading, records):
    """See ``Kernel.read_exposures``."""
    cdef Times times
    cdef int64_t maximum_ms
    cdef dict plans = reading.definitions.plans
    cdef dict groups = reading.exposures
    records = tuple(records)
    cdef Exposures read = Exposures(records)
    if groups:
        raise ValueError("a reading is of one batch, and this one has exposures already")
    reading.begin_group = read.begin
    times.maximum_ms = reading.maximum_ms
    times.grace_ms = reading.limits.grace_ms
    times.ahead_ms = reading.limits.max_ahead_ms
    for i in range(PLANS):
        _plans[i].plan = NULL
    for record in records:
        maximum_ms = read_usual(reading, <tuple>record, plans, groups, read, &times)
        if maximum_ms == -1:
            reading.maximum_ms = times.maximum_ms
            reading.read_exposure(record)
            maximum_ms = reading.maximum_ms
        times.maximum_ms = maximum_ms
    reading.maximum_ms = times.maximum_ms


# Exposures

cdef enum:
    UNUSUAL
    DUPLICATE
    BEGINS_TRIAL
    JOINS_TRIAL


cdef enum:
    OPEN_NEVER  # a trial window that no other exposure joins
    OPEN_HOUR
    OPEN_ALWAYS


cdef struct Terms:
    PyObject* version
    PyObject* experiment_id
    Span experiment_text
    int64_t number
    int64_t window_ms
    int trial_window


cdef enum:
    TERMS = 256


cdef Terms _terms[TERMS]  # of the versions of the batch whose exposures are applied


cdef Terms* terms_of(Exposure* e) except NULL:
    """What an exposure's version says."""
    cdef Terms* found = &_terms[(<size_t>e.version >> 4) % TERMS]
    if found.version == e.version:
        return found
    plan, version = <object>e.plan, <object>e.version
    experiment_id, trial_window = plan.experiment_id, version.trial_window
    # All of it is held by the definitions, which nobody changes while a batch is applied.
    found.experiment_id = <PyObject*>experiment_id
    found.experiment_text = text_of(experiment_id)
    found.number = version.version
    found.window_ms = version.window_ms
    found.trial_window = (
        OPEN_HOUR if trial_window == "hour" else OPEN_ALWAYS if trial_window == "experiment" else OPEN_NEVER
    )
    found.version = e.version
    return found


cdef inline void set_span(Exposure* e, Terms* terms) noexcept:
    """Where a trial begins that the exposure can join; as ``VersionPlan.trial_span_ms``."""
    e.start_ms = e.end_ms = 0
    if terms.trial_window == OPEN_HOUR:
        e.start_ms = e.ms - e.ms % HOUR_MS
        e.end_ms = e.start_ms + HOUR_MS
    elif terms.trial_window == OPEN_ALWAYS:
        e.end_ms = NEVER_MS


cdef bint has_other(Trial* trial, Span exposure_id, int64_t floor_ms) noexcept:
    cdef Cursor c = over(trial.others)
    cdef Other other
    cdef Py_ssize_t i
    for i in range(trial.n_others):
        other = take_other(&c)
        if other.ms >= floor_ms and same(other.exposure_id, exposure_id):
            return True
    return False


cdef int place(Block* block, Exposure* e, Py_ssize_t* joined) noexcept:
    """What an exposure is to a block; ``joined`` is the trial that it joins, -1 if it begins one."""
    cdef Py_ssize_t i
    cdef Trial* trial
    joined[0] = -1
    for i in range(block.n_trials):
        trial = &_trials[i]
        if trial.first_ms >= e.floor_ms and same(trial.first_id, e.exposure_id):
            return DUPLICATE
        if trial.n_others and has_other(trial, e.exposure_id, e.floor_ms):
            return DUPLICATE
        if e.start_ms <= trial.first_ms < e.end_ms and trial.version == e.number:
            joined[0] = i
    if block.n_trials and not block.has_mark and not block.is_closed and is_before(e, &_trials[0]):
        return UNUSUAL
    if joined[0] < 0:
        return BEGINS_TRIAL
    return UNUSUAL if is_before(e, &_trials[joined[0]]) else JOINS_TRIAL


cdef inline bint is_before(Exposure* e, Trial* trial) noexcept:
    if e.ms != trial.first_ms:
        return e.ms < trial.first_ms
    return compare(e.exposure_id, trial.first_id) < 0


cdef int write_block(BlockRef* ref, Block* block, Exposure* e, Py_ssize_t joined) except -1:
    """Write a block with one exposure more into the arena."""
    cdef Span old = body_of(ref)
    cdef Py_ssize_t began = _arena.size
    cdef Py_ssize_t rest
    cdef Trial* trial
    cdef Span part
    # The old body may be in the arena, which may move: spans into it are relative to its start from here on.
    cdef const uint8_t* old_at = old.at
    reserve(&_arena, old.size + e.exposure_id.size + e.arm_text.size + e.segment_text.size + 2 * HEAD_BYTES)
    cdef Py_ssize_t moved = body_of(ref).at - old_at
    put_array(&_arena, 4)
    put_array(&_arena, block.n_trials + (joined < 0))
    if joined < 0:
        part = block.trials
        part.at += moved
        put_raw(&_arena, part)
        put_array(&_arena, 10)
        put_int(&_arena, e.number)
        put_int(&_arena, e.ms)
        put_text(&_arena, e.exposure_id)
        put_text(&_arena, e.arm_text)
        put_text(&_arena, e.segment_text)
        put_int(&_arena, e.group)
        put_int(&_arena, e.allocation)
        put_array(&_arena, 0)
        put_byte(&_arena, 0xC0)
        put_byte(&_arena, 0xC0)
    else:
        trial = &_trials[joined]
        part.at = block.trials.at + moved
        part.size = trial.head.at + trial.head.size - block.trials.at
        put_raw(&_arena, part)
        put_array(&_arena, trial.n_others + 1)
        part.at = trial.others.at + moved
        part.size = trial.others.size
        put_raw(&_arena, part)
        put_array(&_arena, 3)
        put_int(&_arena, e.ms)
        put_text(&_arena, e.exposure_id)
        put_text(&_arena, e.arm_text)
        part.at += part.size
        part.size = block.trials.at + moved + block.trials.size - part.at
        put_raw(&_arena, part)
    part.at = block.mark.at + moved
    part.size = old_at + moved + old.size - part.at
    put_raw(&_arena, part)
    ref.changed_at = began
    ref.changed_size = _arena.size - began
    return 0


cdef object increments_at(dict by_stub, tuple stub):
    found = by_stub.get(stub)
    if found is None:
        found = by_stub[stub] = Increments()
    return found


cdef object stub_of_trial(object experiment_id, Trial* trial, str view):
    return (
        experiment_id,
        trial.version,
        view,
        str_of(trial.arm),
        str_of(trial.segment),
        trial.group,
        trial.allocation,
        trial.first_ms // HOUR_MS,
    )


cdef object stub_of_first(object experiment_id, Block* block):
    if not block.has_mark:
        return stub_of_trial(experiment_id, &_trials[0], "reporting")
    return (
        experiment_id,
        block.mark_version,
        "reporting",
        str_of(block.mark_arm),
        str_of(block.mark_segment),
        block.mark_group,
        block.mark_allocation,
        block.mark_ms // HOUR_MS,
    )


cdef struct Began:
    # A trial that an exposure begins, by what its stub is made of.
    PyObject* experiment_id
    PyObject* arm
    PyObject* segment
    int64_t number
    int64_t group
    int64_t allocation
    int64_t bucket
    bint is_reporting


cdef struct Sum:
    Began began
    int64_t trials


cdef enum:
    SUMS = 1024
    SLOTS = 2048


cdef Began _began[2 * MAX_EVENTS]  # by the exposures of one unit
cdef Sum _sums[SUMS]  # of the units of a batch, in the order in which they came up
cdef int16_t _slots[SLOTS]  # one more than an index into _sums; 0: free
cdef Py_ssize_t _n_sums = 0


cdef void forget_sums() noexcept:
    global _n_sums
    cdef Py_ssize_t i
    _n_sums = 0
    for i in range(SLOTS):
        _slots[i] = 0


cdef int add_sums(dict by_stub) except -1:
    """Give the sums so far to the tally, and begin anew."""
    cdef Py_ssize_t i
    cdef Began* began
    for i in range(_n_sums):
        began = &_sums[i].began
        stub = (
            <object>began.experiment_id,
            began.number,
            "reporting" if began.is_reporting else "steering",
            <object>began.arm,
            <object>began.segment,
            began.group,
            began.allocation,
            began.bucket,
        )
        increments_at(by_stub, stub).trials += _sums[i].trials
    forget_sums()
    return 0


cdef inline bint is_same(Began* a, Began* b) noexcept:
    return (
        a.arm == b.arm
        and a.experiment_id == b.experiment_id
        and a.bucket == b.bucket
        and a.is_reporting == b.is_reporting
        and a.segment == b.segment
        and a.number == b.number
        and a.group == b.group
        and a.allocation == b.allocation
    )


cdef int count_trial(dict by_stub, Began* began) except -1:
    """Count a trial; stubs of equal strings that are not the same objects meet in the tally."""
    global _n_sums
    cdef uint64_t mixed = <uint64_t><size_t>began.arm ^ <uint64_t><size_t>began.experiment_id << 7
    mixed = (mixed ^ <uint64_t>(began.bucket * 2 + began.is_reporting)) * 0x9E3779B97F4A7C15u
    mixed ^= <uint64_t>began.allocation * 0xC2B2AE3D27D4EB4Fu
    cdef Py_ssize_t slot = <Py_ssize_t>(mixed >> 40) % SLOTS
    while _slots[slot]:
        if is_same(&_sums[_slots[slot] - 1].began, began):
            _sums[_slots[slot] - 1].trials += 1
            return 0
        slot = (slot + 1) % SLOTS
    if _n_sums == SUMS:
        add_sums(by_stub)
        slot = <Py_ssize_t>(mixed >> 40) % SLOTS
    _sums[_n_sums].began = began[0]
    _sums[_n_sums].trials = 1
    _n_sums += 1
    _slots[slot] = <int16_t>_n_sums
    return 0


cdef list note_exposure(
    Py_ssize_t* n_began, list crossovers, Terms* terms, Block* block, Exposure* e, Py_ssize_t joined
):
    """Note what an exposure adds: trials in ``_began``, crossovers by stub in the list given back."""
    cdef Trial* first = NULL
    cdef int64_t first_ms, first_version
    cdef Span first_arm
    cdef Began began
    began.experiment_id = terms.experiment_id
    began.arm = e.arm
    began.segment = e.segment
    began.number = e.number
    began.group = e.group
    began.allocation = e.allocation
    began.bucket = e.ms // HOUR_MS
    if joined < 0:
        began.is_reporting = False
        _began[n_began[0]] = began
        n_began[0] += 1
    elif not same(_trials[joined].arm, e.arm_text):
        crossovers = crossovers or []
        crossovers.append(stub_of_trial(<object>terms.experiment_id, &_trials[joined], "steering"))
    if block.has_mark or (block.n_trials and not block.is_closed):
        if block.has_mark:
            first_ms, first_version, first_arm = block.mark_ms, block.mark_version, block.mark_arm
        else:
            first = &_trials[0]
            first_ms, first_version, first_arm = first.first_ms, first.version, first.arm
        if (
            not same(first_arm, e.arm_text)
            and e.ms - first_ms < <int64_t>(<object>e.plan).by_number[first_version].window_ms
        ):
            crossovers = crossovers or []
            crossovers.append(stub_of_first(<object>terms.experiment_id, block))
    elif not block.is_closed:
        began.is_reporting = True
        _began[n_began[0]] = began
        n_began[0] += 1
    return crossovers


cdef Py_ssize_t find_block(Unit* unit, Span key) noexcept:
    """Index of a block; one more than the last where there is none, which is then begun."""
    cdef Py_ssize_t i
    for i in range(unit.n_blocks):
        if same(_blocks[i].key, key):
            return i
    _blocks[unit.n_blocks].key = key
    _blocks[unit.n_blocks].body.at = <const uint8_t*>b"\x94\x90\xC0\xC2\xC0"
    _blocks[unit.n_blocks].body.size = 5
    _blocks[unit.n_blocks].changed_at = -1
    return unit.n_blocks


cdef object apply_usual_exposures(
    object raw, Group group, int64_t evict_due_ms, int64_t max_events, object ledger, dict by_stub,
    int64_t* accepted
):
    """Do what ``streams.join.exposures.apply_exposures`` does, if all of it is usual.

    Trials and accepted exposures are left for the end of the batch: see ``add_sums`` and ``accepted``.

    Returns
    -------
    bytes, None or NotImplemented
        New state; None if nothing changes; NotImplemented, and nothing is done, if an event is not usual.
    """
    cdef Unit unit
    cdef Block block
    cdef Exposure* e
    cdef Exposure* exposures = group.exposures.at
    cdef Terms* terms
    cdef Py_ssize_t at, i, joined, n_accepted = 0, n_duplicates = 0, n_began = 0
    cdef int found
    cdef list crossovers = None
    if group.items is not None or not take_unit(raw, &unit) or unit.due_ms <= evict_due_ms:
        return NotImplemented
    if unit.n_events + group.size > (MAX_EVENTS if MAX_EVENTS < max_events else max_events):
        return NotImplemented
    i = group.first
    while i >= 0:
        e = &exposures[i]
        i = e.next
        if e.ms <= unit.last_conversion_ms:
            return NotImplemented
        terms = terms_of(e)
        e.number = terms.number
        set_span(e, terms)
        at = find_block(&unit, terms.experiment_text)
        if at == MAX_BLOCKS - 1 or not take_block(body_of(&_blocks[at]), &block):
            return NotImplemented
        found = place(&block, e, &joined)
        if found == UNUSUAL:
            return NotImplemented
        if found == DUPLICATE:
            n_duplicates += 1
            continue
        crossovers = note_exposure(&n_began, crossovers, terms, &block, e, joined)
        write_block(&_blocks[at], &block, e, joined)
        unit.n_blocks = max(unit.n_blocks, at + 1)
        n_accepted += 1
        unit.n_events += 1
        unit.due_ms = min(unit.due_ms, e.ms + terms.window_ms)
    for i in range(n_began):
        count_trial(by_stub, &_began[i])
    if crossovers is not None:
        for stub in crossovers:
            increments_at(by_stub, stub).crossovers += 1
    if n_duplicates:
        ledger.count("duplicate", n_duplicates)
    accepted[0] += n_accepted
    return state_of(&unit) if n_accepted else None


def apply_exposures(dict groups, dict stored, object scope, object general):
    """See ``Kernel.apply_exposures``."""
    cdef int64_t evict_due_ms = scope.evict_due_ms, max_events = scope.limits.unit_max_events, accepted = 0
    cdef Py_ssize_t i
    cdef Group group
    ledger = scope.ledger
    cdef dict by_stub = ledger.tally.by_stub
    units: dict = {}
    forget_sums()
    for i in range(TERMS):
        _terms[i].version = NULL
    for key, group in groups.items():
        raw = stored[key]
        changed = apply_usual_exposures(raw, group, evict_due_ms, max_events, ledger, by_stub, &accepted)
        if changed is NotImplemented:
            changed = general(raw, items_of(group), scope)
        if changed is not None:
            units[key] = changed
    add_sums(by_stub)
    ledger.n_accepted += accepted
    return units


# Conversions

cdef struct Version:
    bint counts  # the conversion's metric
    bint is_last_touch
    int64_t window_ms
    int64_t cap_micros  # -1: none, i.e. a mere click metric


cdef struct Rules:
    # What an experiment makes of conversions; metric and version are the last that were asked for.
    Span experiment_id  # of the plan's own string
    PyObject* plan
    bint is_archived
    PyObject* wanted
    bint is_wanted
    PyObject* metric
    int64_t number
    int is_usual
    Version version


cdef Rules _rules[PLANS]  # of the batch whose conversions are applied


cdef Rules* rules_of(Span experiment_id, dict plans) except? NULL:
    """Rules of an experiment; NULL if it is not known."""
    cdef Rules* found = &_rules[place_of(experiment_id)]
    if found.plan is not NULL and same(found.experiment_id, experiment_id):
        return found
    plan = plans.get(str_of(experiment_id))
    if plan is None:
        return NULL
    found.plan = <PyObject*>plan
    found.experiment_id = text_of(plan.experiment_id)
    found.is_archived = plan.is_archived
    found.metric = found.wanted = NULL
    return found


cdef int version_of(Rules* rules, int64_t number, PyObject* metric, Version* version) except -1:
    """What a version makes of a metric; 0 if that takes an earlier click.

    Equal metrics must be the same object for the answer to be found again.
    """
    if rules.metric is NULL or rules.metric != metric or rules.number != number:
        rules.metric = NULL
        rules.is_usual = ask_version(rules, number, <object>metric)
        rules.number = number
        rules.metric = metric
    version[0] = rules.version
    return rules.is_usual


cdef int ask_version(Rules* rules, int64_t number, object metric) except -1:
    cdef Version* version = &rules.version
    found = (<object>rules.plan).by_number[number]
    gate = found.roles.get(metric)
    version.counts = gate is not None
    if not version.counts:
        return 1
    if gate != "":
        return 0
    version.window_ms = found.window_ms
    version.is_last_touch = found.touch == "last"
    cap = found.caps.get(metric)
    version.cap_micros = -1 if cap is None else cap
    return 1


cdef int64_t touch_ms(Trial* trial, int64_t at_ms, Span* exposure_id) noexcept:
    """Time and id of a trial's newest touch up to a conversion; its first exposure is one."""
    cdef Cursor c = over(trial.others)
    cdef Other other
    cdef Py_ssize_t i
    cdef int64_t ms = trial.first_ms
    exposure_id[0] = trial.first_id
    for i in range(trial.n_others):
        other = take_other(&c)
        if other.ms > at_ms or other.ms < ms or not same(other.arm, trial.arm):
            continue
        if other.ms > ms or compare(other.exposure_id, exposure_id[0]) > 0:
            ms = other.ms
            exposure_id[0] = other.exposure_id
    return ms


cdef inline bint is_empty(Span earned) noexcept:
    """Whether what was earned is nil or an empty map."""
    return earned.size == 1 and (earned.at[0] == 0xC0 or earned.at[0] == 0x80)


cdef int64_t earned_by(Span earned, Span metric) noexcept:
    """Micro-units earned by a metric; -1 if it has earned nothing yet."""
    cdef Cursor c = over(earned)
    cdef Py_ssize_t n
    cdef Span name
    cdef int64_t value
    if is_empty(earned):
        return -1
    n = take_map(&c)
    while n > 0:
        name = take_text(&c)
        value = take_int(&c)
        if same(name, metric):
            return value
        n -= 1
    return -1


cdef void put_earned(Out* out, Span earned, Span metric, int64_t value) noexcept:
    """Write what was earned, with another value for one metric."""
    cdef Cursor c = over(earned)
    cdef Py_ssize_t i, n = 0
    cdef Span name
    cdef int64_t old
    cdef bint is_new = earned_by(earned, metric) < 0
    if not is_empty(earned):
        n = take_map(&c)
    put_map(out, n + is_new)
    for i in range(n):
        name = take_text(&c)
        old = take_int(&c)
        put_text(out, name)
        put_int(out, value if same(name, metric) else old)
    if is_new:
        put_text(out, metric)
        put_int(out, value)


cdef struct Gain:
    bint is_there
    Span earned  # before
    int64_t before
    int64_t after


cdef inline Gain gain_of(Span earned, Span base, Span metric, int64_t value, int64_t cap) noexcept:
    cdef Gain gain
    gain.is_there = True
    gain.earned = base if is_empty(earned) else earned
    gain.before = earned_by(gain.earned, metric)
    gain.after = <int64_t>min(<uint64_t>cap, <uint64_t>max(gain.before, 0) + <uint64_t>value)
    return gain


cdef struct Fresh:
    # A conversion that is not known yet.
    PyObject* metric
    PyObject* experiment_id  # NULL: all of them
    Span metric_text
    int64_t ms
    int64_t value_micros
    int64_t n_credits


cdef Fresh _fresh[MAX_FRESH]  # of one unit


cdef int is_for(Rules* rules, Fresh* conversion) except -1:
    """Whether a conversion may count in an experiment: it names no other, and its metric is one there."""
    if rules.wanted is NULL or rules.wanted != conversion.metric:
        rules.wanted = NULL
        rules.is_wanted = <object>conversion.metric in (<object>rules.plan).metrics
        rules.wanted = conversion.metric
    if not rules.is_wanted or conversion.experiment_id is NULL:
        return rules.is_wanted
    return same(text_of(<object>conversion.experiment_id), rules.experiment_id)


cdef object gain_note(object stub, Fresh* conversion, Gain* gain):
    lag = conversion.ms // HOUR_MS - <int64_t>stub[7]
    before, after = max(gain.before, 0), gain.after
    grown, grown_sq = after - before, <object>after * <object>after - <object>before * <object>before
    return stub, <object>conversion.metric, lag, gain.before < 0, grown, grown_sq


cdef int count_newest(Rules* rules, BlockRef* ref, Fresh* conversion, list notes) except -1:
    """As ``streams.join.attribution.count_newest``.

    Returns
    -------
    int
        Number of credits, 0 or 1; 2 if the conversion is not usual.
    """
    cdef Block block
    cdef Version version
    cdef Span metric = conversion.metric_text
    cdef int64_t at_ms = conversion.ms, value = conversion.value_micros
    cdef int64_t ms, newest_ms = -1, number = -1, first_ms, cap = -1
    cdef Span exposure_id, newest_id
    cdef Py_ssize_t i, chosen = -1
    cdef bint is_last_touch = True
    cdef Gain credit, report
    credit.is_there = report.is_there = False
    if not take_block(body_of(ref), &block):
        return 2
    newest_id.at, newest_id.size = NULL, 0
    for i in range(block.n_trials):
        if _trials[i].version != number:
            number = _trials[i].version
            if not version_of(rules, number, conversion.metric, &version):
                return 2
        if not version.counts or _trials[i].first_ms > at_ms:
            continue
        ms = touch_ms(&_trials[i], at_ms, &exposure_id)
        if at_ms - ms >= version.window_ms or ms < newest_ms:
            continue
        if ms > newest_ms or compare(exposure_id, newest_id) > 0:
            chosen, newest_ms, newest_id = i, ms, exposure_id
            is_last_touch, cap = version.is_last_touch, version.cap_micros
    if chosen >= 0:
        if not is_last_touch or cap < 0:
            return 2
        credit = gain_of(_trials[chosen].earned, _trials[chosen].base, metric, value, cap)
    if not block.is_closed and (block.has_mark or block.n_trials):
        first_ms = block.mark_ms if block.has_mark else _trials[0].first_ms
        number = block.mark_version if block.has_mark else _trials[0].version
        if not version_of(rules, number, conversion.metric, &version):
            return 2
        if version.counts and 0 <= at_ms - first_ms < version.window_ms:
            if version.cap_micros < 0:
                return 2
            report = gain_of(
                block.earned, block.mark_base if block.has_mark else block.earned, metric, value,
                version.cap_micros,
            )
    if credit.is_there:
        stub = stub_of_trial((<object>rules.plan).experiment_id, &_trials[chosen], "steering")
        notes.append(gain_note(stub, conversion, &credit))
    if report.is_there:
        stub = stub_of_first((<object>rules.plan).experiment_id, &block)
        notes.append(gain_note(stub, conversion, &report))
    if credit.is_there or report.is_there:
        write_earned(ref, &block, metric, chosen, &credit, &report)
    return credit.is_there


cdef int write_earned(
    BlockRef* ref, Block* block, Span metric, Py_ssize_t chosen, Gain* credit, Gain* report
) except -1:
    """Write a block whose trials have earned more into the arena."""
    cdef Span old = body_of(ref)
    cdef Span part
    cdef Trial* trial
    cdef const uint8_t* at = old.at
    cdef Py_ssize_t began = _arena.size
    reserve(&_arena, 2 * old.size + 2 * metric.size + 2 * HEAD_BYTES)
    cdef Py_ssize_t moved = body_of(ref).at - old.at
    if credit.is_there:
        credit.earned.at += moved
        trial = &_trials[chosen]
        part.at = at + moved
        part.size = trial.earned.at - at
        put_raw(&_arena, part)
        put_earned(&_arena, credit.earned, metric, credit.after)
        at = trial.earned.at + trial.earned.size
    part.at = at + moved
    part.size = block.earned.at - at
    put_raw(&_arena, part)
    if report.is_there:
        report.earned.at += moved
        put_earned(&_arena, report.earned, metric, report.after)
    else:
        part.at = block.earned.at + moved
        part.size = block.earned.size
        put_raw(&_arena, part)
    ref.changed_at = began
    ref.changed_size = _arena.size - began
    return 0


cdef bint is_known(Unit* unit, Span conversion_id, int64_t floor_ms, bint* is_bad) noexcept:
    """Whether a unit has a conversion of this id that is not older than ``floor_ms``."""
    cdef Cursor c = over(unit.conversions)
    cdef Py_ssize_t n = take_array(&c) if unit.conversions.size else 0
    cdef int64_t ms
    cdef Span known
    cdef bint found = False
    while n > 0 and not c.bad:
        if take_array(&c) != 8:
            c.bad = True
        ms = take_int(&c)
        known = take_text(&c)
        found = found or (ms >= floor_ms and same(known, conversion_id))
        take_text(&c)
        take_int(&c)
        take_int(&c)
        take_bool(&c)
        if not take_nil(&c):
            take_text(&c)
        if not take_nil(&c):
            take_text(&c)
        n -= 1
    is_bad[0] = c.bad or c.at != c.end
    return found


cdef object conversions_with(Unit* unit, list fresh):
    """Encoded conversions of a unit with fresh ones, also in ``_fresh``, which are later than all others."""
    cdef Cursor c = over(unit.conversions)
    cdef Py_ssize_t i, n = take_array(&c) if unit.conversions.size else 0
    cdef Span old, text
    old.at = c.at
    old.size = c.end - c.at
    cdef Py_ssize_t wanted = old.size + HEAD_BYTES
    for conversion in fresh:
        wanted += 4 * HEAD_BYTES + 4 * (len(conversion.conversion_id) + len(conversion.metric))
        wanted += 4 * len(conversion.experiment_id or "")
    _state.size = 0
    reserve(&_state, wanted)
    put_array(&_state, n + len(fresh))
    put_raw(&_state, old)
    for i in range(len(fresh)):
        conversion = fresh[i]
        put_array(&_state, 8)
        put_int(&_state, conversion.timestamp_ms)
        put_text(&_state, text_of(conversion.conversion_id))
        put_text(&_state, text_of(conversion.metric))
        put_int(&_state, conversion.value_micros)
        put_int(&_state, _fresh[i].n_credits)
        put_byte(&_state, 0xC2)
        if conversion.experiment_id is None:
            put_byte(&_state, 0xC0)
        else:
            put_text(&_state, text_of(conversion.experiment_id))
        put_byte(&_state, 0xC0)
    return PyBytes_FromStringAndSize(<char*>_state.data, _state.size)


cdef object apply_usual_conversions(
    object raw, list items, dict plans, int64_t evict_due_ms, int64_t max_events, object ledger, dict metrics
):
    """Do what ``streams.join.conversions.apply_conversions`` does, if all of it is usual.

    Usual are conversions that come in time order, after all others of the unit, name no exposure, are no
    tests, and need no click. ``metrics`` keeps one object for each metric of the batch.

    Returns
    -------
    bytes, None or NotImplemented
        New state; None if nothing changes; NotImplemented, and nothing is done, if an event is not usual.
    """
    cdef Unit unit
    cdef int64_t floor_ms, at_ms, n_attributed = 0
    cdef Py_ssize_t i, k, n_fresh = 0, n_duplicates = 0
    cdef Rules* rules
    cdef Fresh* own
    cdef bint is_bad = False, is_duplicate
    cdef int credits
    if not take_unit(raw, &unit) or unit.due_ms <= evict_due_ms:
        return NotImplemented
    if unit.n_events + len(items) > (MAX_EVENTS if MAX_EVENTS < max_events else max_events):
        return NotImplemented
    fresh: list = []
    for item in items:
        conversion = item[2]
        floor_ms = item[1]
        is_duplicate = is_known(&unit, text_of(conversion.conversion_id), floor_ms, &is_bad)
        if is_bad:
            return NotImplemented
        if is_duplicate:
            n_duplicates += 1
            continue
        at_ms = conversion.timestamp_ms
        if at_ms <= unit.last_conversion_ms or conversion.is_test:
            return NotImplemented
        if conversion.exposure_id is not None:
            return NotImplemented
        for other in fresh:
            if other.conversion_id == conversion.conversion_id:
                return NotImplemented
        metric, experiment_id = conversion.metric, conversion.experiment_id
        metric = metrics.setdefault(metric, metric)
        own = &_fresh[n_fresh]
        own.metric = <PyObject*>metric
        own.metric_text = text_of(metric)
        own.experiment_id = NULL if experiment_id is None else <PyObject*>experiment_id
        own.ms = at_ms
        own.value_micros = conversion.value_micros
        own.n_credits = 0
        n_fresh += 1
        fresh.append(conversion)
        unit.last_conversion_ms = at_ms
    if not fresh:
        ledger.count("duplicate", n_duplicates)
        return None
    notes: list = []
    for i in range(unit.n_blocks):
        rules = rules_of(_blocks[i].key, plans)
        if rules is NULL:
            return NotImplemented
        if rules.is_archived:
            continue
        for k in range(n_fresh):
            own = &_fresh[k]
            if not is_for(rules, own):
                continue
            credits = count_newest(rules, &_blocks[i], own, notes)
            if credits == 2:
                return NotImplemented
            own.n_credits += credits
    for k in range(n_fresh):
        n_attributed += _fresh[k].n_credits > 0
    for stub, metric, lag, is_success, value, value_sq in notes:
        lags = increments_at(ledger.tally.by_stub, stub).lags_of(metric)
        counts = lags.get(lag)
        if counts is None:
            counts = lags[lag] = [0, 0, 0]
        counts[0] += 1 if is_success else 0
        counts[1] += value
        counts[2] += value_sq
    if n_duplicates:
        ledger.count("duplicate", n_duplicates)
    ledger.n_accepted += n_fresh
    ledger.n_pending += n_fresh
    ledger.attribute(n_attributed)
    unit.n_events += n_fresh
    unit.due_ms = min(unit.due_ms, earliest_ms(&unit, _fresh[0].ms))
    encoded = conversions_with(&unit, fresh)
    unit.conversions.at = <const uint8_t*>PyBytes_AS_STRING(encoded)
    unit.conversions.size = PyBytes_GET_SIZE(encoded)
    return state_of(&unit)


cdef int64_t earliest_ms(Unit* unit, int64_t fresh_ms) noexcept:
    """Time of a unit's first conversion, that of the fresh ones if it has no other."""
    cdef Cursor c = over(unit.conversions)
    if not unit.conversions.size or not take_array(&c) or take_array(&c) != 8:
        return fresh_ms
    return take_int(&c)


def apply_conversions(dict groups, dict stored, object scope, object general):
    """See ``Kernel.apply_conversions``."""
    cdef int64_t evict_due_ms = scope.evict_due_ms, max_events = scope.limits.unit_max_events
    cdef Py_ssize_t i
    ledger, plans = scope.ledger, scope.definitions.plans
    metrics: dict = {}
    units: dict = {}
    for i in range(PLANS):
        _rules[i].plan = NULL
    for key, items in groups.items():
        raw = stored[key]
        changed = apply_usual_conversions(raw, items, plans, evict_due_ms, max_events, ledger, metrics)
        if changed is NotImplemented:
            changed = general(raw, items, scope)
        if changed is not None:
            units[key] = changed
    return units
