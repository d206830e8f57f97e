//! Lists, as aligned tables for people, as CSV for spreadsheets, as JSON for programs.

use anyhow::Result;
use serde::Serialize;

use crate::Look;

/// Prints `rows` under `header`, or `value`, which is the same for programs.
pub fn show<T: Serialize + ?Sized>(look: &Look, header: &[&str], rows: &[Vec<String>], value: &T) -> Result<()> {
    if look.json {
        println!("{}", serde_json::to_string_pretty(value)?);
    } else if look.csv {
        print!("{}", csv(header, rows)?);
    } else {
        print(header, rows);
    }
    Ok(())
}

/// RFC 4180.
fn csv(header: &[&str], rows: &[Vec<String>]) -> Result<String> {
    let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new());
    writer.write_record(header.iter().map(|h| h.to_lowercase().replace(' ', "_")))?;
    for row in rows {
        writer.write_record(row)?;
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}

/// Prints `rows` under `header`, each column as wide as its widest cell.
pub fn print(header: &[&str], rows: &[Vec<String>]) {
    print!("{}", render(header, rows));
}

fn render(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = line(&widths, header.iter().copied());
    for row in rows {
        out.push_str(&line(&widths, row.iter().map(String::as_str)));
    }
    out
}

fn line<'a>(widths: &[usize], cells: impl Iterator<Item = &'a str>) -> String {
    let padded: Vec<String> = cells.zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
    format!("{}\n", padded.join("  ").trim_end())
}

#[cfg(test)]
mod tests {
    #[test]
    fn csv_quotes_what_it_must() {
        let rows = vec![vec!["a, b".to_owned(), "say \"c\"".to_owned()]];
        assert_eq!(
            super::csv(&["GAME", "SILENT FOR"], &rows).unwrap(),
            "game,silent_for\r\n\"a, b\",\"say \"\"c\"\"\"\r\n"
        );
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = vec![vec!["nfl-1".to_owned(), "é".to_owned()], vec!["x".to_owned(), "yy".to_owned()]];
        assert_eq!(super::render(&["GAME", "SHARD"], &rows), "GAME   SHARD\nnfl-1  é\nx      yy\n");
    }
}
