"""Makes and checks shared/src/country/prefixes.txt, the countries of telephone numbers, with Google's metadata.

countries.py write   writes the table
countries.py check   compares the table with numbers that are made at random
"""

import functools
import pathlib
import random
import sys

import phonenumbers
from phonenumbers import COUNTRY_CODE_TO_REGION_CODE as REGIONS

TABLE = pathlib.Path(__file__).parents[2] / "shared/src/country/prefixes.txt"
LONGEST_PREFIX = 8
SAMPLES = 1000


def country(number):
    """The country of the digits of a number; None if they are no valid number of a country."""
    try:
        region = phonenumbers.region_code_for_number(phonenumbers.parse("+" + number))
    except phonenumbers.NumberParseException:
        return None
    return region if region and region != "001" else None


def sample(prefix, code, chance):
    lengths = set()
    for region in REGIONS[code]:
        metadata = phonenumbers.PhoneMetadata.metadata_for_region(region)
        lengths.update(metadata.general_desc.possible_length)
    if code == 1:
        lengths = {10}  # shorter ones are dialled within Canada only
    digits = chance.choice(sorted(lengths)) + len(str(code)) - len(prefix)
    if digits < 0:
        return None
    return prefix + "".join(chance.choice("0123456789") for _ in range(digits))


@functools.cache
def examples(code):
    """Numbers of small countries, which would hardly be met at random."""
    all_of_code = [phonenumbers.PhoneMetadata.metadata_for_region(region) for region in REGIONS[code]]
    kinds = [(metadata.fixed_line, metadata.mobile) for metadata in all_of_code]
    numbers = (kind.example_number for of_country in kinds for kind in of_country if kind)
    return [f"{code}{number}" for number in numbers if number]


def regions(prefix, code, chance):
    # An area code of North America belongs to one country.
    samples = SAMPLES // 30 if code == 1 else SAMPLES
    numbers = [sample(prefix, code, chance) for _ in range(samples)]
    numbers += [number for number in examples(code) if number.startswith(prefix)]
    return {country(number) for number in numbers if number} - {None}


def split(prefix, code, chance, table):
    found = regions(prefix, code, chance)
    if len(found) == 1:
        table.setdefault(found.pop(), []).append(prefix)
    elif found and len(prefix) < LONGEST_PREFIX:
        for digit in "0123456789":
            split(prefix + digit, code, chance, table)
    elif found:
        raise SystemExit(f"{prefix} belongs to {found}")


def merge(prefixes):
    """Ten siblings are their parent."""
    prefixes = set(prefixes)
    for length in range(LONGEST_PREFIX, 1, -1):
        for parent in {prefix[:-1] for prefix in prefixes if len(prefix) == length}:
            children = {parent + digit for digit in "0123456789"}
            if children <= prefixes:
                prefixes = prefixes - children | {parent}
    return sorted(prefixes)


def write():
    chance = random.Random(1)
    table = {}
    for code, of_code in sorted(REGIONS.items()):
        if of_code == ("001",):
            continue
        if len(of_code) == 1:
            table.setdefault(of_code[0], []).append(str(code))
        elif code == 1:
            # By area codes: those that nobody has belong to no country.
            for area in range(200, 1000):
                split(f"1{area}", code, chance, table)
        else:
            # Ranges that are not assigned belong to the country that has most of the code.
            main, *others = of_code
            of_this_code = {}
            split(str(code), code, chance, of_this_code)
            for other in others:
                table.setdefault(other, []).extend(of_this_code.get(other, []))
            table.setdefault(main, []).append(str(code))
    lines = [f"{country} {' '.join(merge(prefixes))}\n" for country, prefixes in sorted(table.items()) if prefixes]
    TABLE.write_text("".join(lines))
    print(f"{len(lines)} countries, {sum(len(line.split()) - 1 for line in lines)} prefixes")


def check():
    prefixes = {}
    for line in TABLE.read_text().splitlines():
        name, *of_country = line.split()
        prefixes.update((prefix, name) for prefix in of_country)
    chance = random.Random()
    checked = wrong = 0
    for code, of_code in REGIONS.items():
        if of_code == ("001",):
            continue
        for number in [sample(str(code), code, chance) for _ in range(SAMPLES)] + examples(code):
            expected = number and country(number)
            if not expected:
                continue
            ours = next((prefixes[number[:n]] for n in range(LONGEST_PREFIX, 0, -1) if number[:n] in prefixes), None)
            checked += 1
            if ours != expected:
                wrong += 1
                print(f"+{number[:LONGEST_PREFIX]}… is {expected}, not {ours}")
    print(f"{checked} valid numbers, {wrong} differ")
    sys.exit(wrong > 0 or checked < 100_000)


if __name__ == "__main__":
    {"write": write, "check": check}[sys.argv[1]]()
