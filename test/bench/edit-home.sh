#!/usr/bin/env bash
# A day of work on the tree of make-home.sh: one small file in a hundred is edited, moved or removed, a few are new, one
# photo is added, and 40 places of 8 KiB in the disk image are written over. The same SEED makes the same choices.
# Prints how many bytes changed: edited and new files whole, the image by the places written.
# Usage: edit-home.sh DIR [SEED]
set -euo pipefail
python3 - "$1" "${2:-1}" <<'PYTHON'
import os
import random
import sys

SMALL = 1 << 20
PLACE = 8192

home, seed = sys.argv[1], int(sys.argv[2])
random.seed(seed)


def is_small(path):
    return os.path.isfile(path) and not os.path.islink(path) and os.path.getsize(path) < SMALL


def write(path, data):
    with open(path, 'wb') as file:
        file.write(data)
    return len(data)


paths = [os.path.join(where, name) for where, _, names in os.walk(home) for name in names]
small = sorted(path for path in paths if is_small(path))
chosen = random.sample(small, max(10, len(small) // 100))
tenth = len(chosen) // 10
changed = 0

for path in chosen[: tenth * 6]:
    with open(path, 'ab') as file:
        file.write(b'\nedited %d\n' % seed)
    changed += os.path.getsize(path)
for path in chosen[tenth * 6 : tenth * 8]:
    os.rename(path, f'{path}.moved{seed}')
for path in chosen[tenth * 8 : tenth * 9]:
    os.unlink(path)
for number in range(tenth):
    text = os.urandom(64).hex().encode() * random.randint(1, 99)
    changed += write(os.path.join(home, f'new-{seed}-{number}.txt'), text)
changed += write(os.path.join(home, 'photos', f'new_{seed}.raw'), os.urandom(8 << 20))

image = os.path.join(home, 'disk.img')
with open(image, 'r+b') as file:
    for _ in range(40):
        file.seek(random.randrange(os.path.getsize(image) - PLACE))
        changed += file.write(os.urandom(PLACE))
print(changed)
PYTHON
