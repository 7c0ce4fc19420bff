//! Amounts of guest memory as people write them: `512M`, `2G`.

/// Reads an amount with its unit and returns it in MiB, or says what is wrong with it.
pub(crate) fn parse_mib(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let per_unit: u64 = match unit.trim() {
        "M" | "MiB" | "Mi" => 1,
        "G" | "GiB" | "Gi" => 1024,
        "" => return Err(format!("`{text}` has no unit; write e.g. {text}M or 2G")),
        _ => {
            return Err(format!(
                "`{text}` is not an amount of memory; write e.g. 512M or 2G"
            ));
        }
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(per_unit))
        .ok_or_else(|| format!("`{text}` is not an amount of memory; write e.g. 512M or 2G"))
}

#[cfg(test)]
mod tests {
    use super::parse_mib;

    #[test]
    fn units_are_needed_and_binary() {
        assert_eq!(parse_mib("512M"), Ok(512));
        assert_eq!(parse_mib("2GiB"), Ok(2048));
        assert_eq!(parse_mib("1 G"), Ok(1024));
        assert_eq!(
            parse_mib("512").unwrap_err(),
            "`512` has no unit; write e.g. 512M or 2G"
        );
        for bad in [
            "",
            "M",
            "-1M",
            "1.5G",
            "99999999999999999999G",
            "18446744073709551615G",
            "1MB",
            "1m",
        ] {
            assert!(parse_mib(bad).is_err(), "{bad}");
        }
    }
}
