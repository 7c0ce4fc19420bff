#!/bin/sh
# Puts the developer tools that Make targets use in place where they are missing: cargo-nextest, cargo-deny,
# cargo-machete, cargo-fuzz, mdbook from the crate registry, typos from the Python registry (into target/tools).
#   scripts/tools.sh lint|test|docs|fuzz
set -eu
cd "$(dirname "$0")/.."

cargo_tool() {
    command -v "$1" >/dev/null 2>&1 || [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/$1" ] ||
        cargo install --quiet --locked --version "$3" "$2"
}
case "${1:-}" in
test) cargo_tool cargo-nextest cargo-nextest 0.9.143 ;;
docs) cargo_tool mdbook mdbook 0.5.4 ;;
fuzz) cargo_tool cargo-fuzz cargo-fuzz 0.13.2 ;;
lint)
    cargo_tool cargo-machete cargo-machete 0.9.2
    cargo_tool cargo-deny cargo-deny 0.20.2
    if [ ! -x target/tools/bin/typos ]; then
        mkdir -p target
        python3 -m venv target/tools
        target/tools/bin/pip install --quiet --disable-pip-version-check typos==1.52.0
    fi
    ;;
*)
    echo "tools.sh: give one of lint, test, docs, fuzz" >&2
    exit 2
    ;;
esac
