"""When a topic counts as read to its end, though compaction has removed its last records."""

from streams.allocator.reader import _Followed


def followed() -> _Followed:
    return _Followed("counts", 50)


def test_a_position_at_the_end_is_enough() -> None:
    topic = followed()
    topic.observe(100, (1, 100), had_records=True)
    assert topic.complete == 100


def test_two_polls_without_records_around_a_response_prove_the_end_it_gave() -> None:
    topic = followed()
    topic.observe(98, (1, 100), had_records=True)
    topic.observe(98, (2, 100), had_records=False)
    assert topic.complete == 98, "its records may not have been handed over yet"
    topic.observe(98, (2, 100), had_records=False)
    assert topic.complete == 100


def test_records_in_between_prove_nothing_about_the_end() -> None:
    topic = followed()
    topic.observe(98, (1, 200), had_records=True)
    topic.observe(98, (2, 200), had_records=False)
    topic.observe(150, (2, 200), had_records=True)
    assert topic.complete == 150
    topic.observe(150, (2, 200), had_records=False)
    topic.observe(150, (2, 200), had_records=False)
    assert topic.complete == 150, "no response since the records came"
    topic.observe(150, (3, 200), had_records=False)
    topic.observe(150, (3, 200), had_records=False)
    assert topic.complete == 200
