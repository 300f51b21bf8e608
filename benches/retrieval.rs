//! Retrieval quality of sentences, offline: `RETRIEVAL_DATA=DIRECTORY cargo bench --bench retrieval`.
//!
//! The directory has `…tools.tsv` (id, name, description), files of questions, `….tsv` (question, ids of the right tools separated by
//! commas), and optionally `…examples.json` (maps an id to questions that the tool answers). The output is nDCG@10 with binary gains
//! and, for each `min_score`, the share of questions that find something after their right tools were removed (false accepts), and
//! that no longer find a right tool they find among the first ten without a minimum score (misses).
#![allow(clippy::print_stdout, reason = "this is a program")]

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::path::Path;
use std::{env, fs};

use registry_sdk::contract::Capability;
use registry_sdk::internal::{Hit, Query, SearchIndex};

const PAGE: usize = 10;
const MIN_SCORES: [f64; 9] = [0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5];

struct Tools {
    index: SearchIndex,
    capabilities: HashMap<String, Capability>,
    ids: HashMap<u32, String>,
    slots: HashMap<String, u32>,
}

impl Tools {
    fn insert(&mut self, id: &str) {
        let slot = self.index.insert(std::slice::from_ref(&self.capabilities[id]));
        self.ids.insert(slot, id.to_owned());
        self.slots.insert(id.to_owned(), slot);
    }

    fn search(&self, query: &Query) -> Vec<(f64, &str)> {
        let hit = |hit: Hit| (hit.score, self.ids[&hit.slot].as_str());
        let mut found: Vec<_> = self.index.search(query, |_, _| true).into_iter().map(hit).collect();
        found.sort_by(|one, other| other.0.total_cmp(&one.0).then(one.1.cmp(other.1)));
        found.truncate(PAGE);
        found
    }
}

type Question = (Query, HashSet<String>);

fn main() -> Result<(), Box<dyn Error>> {
    let Ok(directory) = env::var("RETRIEVAL_DATA") else {
        println!("RETRIEVAL_DATA is not set: there is nothing to measure");
        return Ok(());
    };
    let mut files: Vec<_> =
        fs::read_dir(directory)?.map(|file| Ok(file?.path())).collect::<Result<_, std::io::Error>>()?;
    files.sort();
    let ends_with = |end: &str| files.iter().find(|file| file.to_string_lossy().ends_with(end));
    let tools = rows(ends_with("tools.tsv").ok_or("no tools.tsv")?)?;
    let examples: HashMap<String, Vec<String>> = match ends_with("examples.json") {
        Some(file) => serde_json::from_str(&fs::read_to_string(file)?)?,
        None => HashMap::new(),
    };
    let without = (!examples.is_empty()).then(HashMap::new);
    for examples in without.into_iter().chain([examples]) {
        let capability = |row: &Vec<String>| {
            let capability = Capability::new(&row[1]).description(&row[2]);
            examples.get(&row[0]).into_iter().flatten().fold(capability, Capability::example)
        };
        let capabilities = tools.iter().map(|row| (row[0].clone(), capability(row))).collect();
        let (ids, slots) = (HashMap::new(), HashMap::new());
        let mut known = Tools { index: SearchIndex::default(), capabilities, ids, slots };
        for row in &tools {
            known.insert(&row[0]);
        }
        println!("{} tools, {} with examples", tools.len(), examples.len());
        for file in files.iter().filter(|file| file.extension().is_some_and(|end| end == "tsv")) {
            if !file.to_string_lossy().ends_with("tools.tsv") {
                let questions = rows(file)?
                    .into_iter()
                    .map(|row| (Query::best(&row[0]), row[1].split(',').map(str::to_owned).collect()));
                report(file, &mut known, &questions.collect::<Vec<_>>());
            }
        }
    }
    Ok(())
}

fn rows(file: &Path) -> Result<Vec<Vec<String>>, std::io::Error> {
    let text = fs::read_to_string(file)?;
    Ok(text.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect())
}

#[expect(clippy::cast_precision_loss, reason = "thousands of questions")]
fn report(file: &Path, tools: &mut Tools, questions: &[Question]) {
    let answers = |tools: &Tools, (query, right): &Question, min_score: f64| {
        let found = tools.search(&query.clone().min_score(min_score));
        found.iter().map(|(_, id)| right.contains(*id)).collect::<Vec<_>>()
    };
    let gain = |index: usize| 1.0 / (index as f64 + 2.0).log2();
    let mut total = 0.0;
    for question in questions {
        let found = answers(tools, question, 0.0);
        let ideal: f64 = (0..question.1.len().min(PAGE)).map(gain).sum();
        total += found
            .iter()
            .enumerate()
            .filter(|(_, is_right)| **is_right)
            .map(|(index, _)| gain(index))
            .sum::<f64>()
            / ideal;
    }
    let count = questions.len() as f64;
    println!(
        "{}: {count} questions, nDCG@{PAGE} {:.4}",
        file.file_name().unwrap_or_default().display(),
        total / count
    );
    let mut accepted = [0.0; MIN_SCORES.len()];
    for (query, right) in questions {
        let removed: Vec<_> = right.iter().filter_map(|id| Some((id, tools.slots.remove(id)?))).collect();
        for (_, slot) in &removed {
            tools.index.remove(*slot);
        }
        for (min_score, accepted) in MIN_SCORES.iter().zip(&mut accepted) {
            *accepted += f64::from(u8::from(!tools.search(&query.clone().min_score(*min_score)).is_empty()));
        }
        for (id, _) in &removed {
            tools.insert(id);
        }
    }
    let answered = |min_score| {
        questions.iter().filter(|question| answers(tools, question, min_score).contains(&true)).count() as f64
    };
    let most = answered(0.0);
    for (min_score, accepted) in MIN_SCORES.iter().zip(accepted) {
        println!(
            "  min_score {min_score:.2}: false accepts {:.3}, misses {:.3}",
            accepted / count,
            1.0 - answered(*min_score) / most
        );
    }
}
