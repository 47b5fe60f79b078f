//! What whoever wrote a bad row may do about it.

use super::LineErrorKind as Kind;

impl Kind {
    /// One sentence for people.
    pub fn suggested_fix(self) -> String {
        let text = match self {
            Kind::WrongFormat(found) => {
                return format!(
                    "Train with {}, or write the row in the expected format.",
                    found.training()
                );
            }
            Kind::WrittenAs(found) => {
                return format!("Set x_training.data.format to \"{}\".", found.as_str());
            }
            Kind::UnexpectedFormat => {
                "Write each row as a JSON object with the key 'messages', a list of objects with 'role' and 'content'."
            }
            Kind::InvalidUtf8 => "Save the file as UTF-8.",
            Kind::Nul => "Remove the NUL character; a file in UTF-16 has to be saved as UTF-8.",
            Kind::InvalidJson => {
                "Write the row as one JSON object on one line, with a JSON library rather than by hand."
            }
            Kind::LineTooLong => "Split the row into several shorter ones.",
            Kind::TooDeep => "Nest less deeply; deep data can be given as JSON in a string.",
            Kind::TooManyBlankLines => "Remove the blank lines.",
            Kind::DuplicateKey => "Keep one of the two.",
            Kind::ExtraKey => "Remove the key, or correct its spelling.",
            Kind::MissingKey => "Add the key, or correct its spelling.",
            Kind::MissingRole | Kind::InvalidRole => {
                "Give each message a role: 'system', 'developer', 'user', 'assistant' or 'tool'."
            }
            Kind::UnknownSpeaker => {
                "Say who speaks: 'human', 'gpt', 'system', 'function_call' or 'observation'."
            }
            Kind::InvalidWeight => "Give 'weight' as 0 or 1, on messages of the assistant only.",
            Kind::InvalidValue => "Correct the value at this place.",
            Kind::Unsupported => {
                "Leave this part out: only text and calls of functions can be trained on."
            }
            Kind::TooLarge => "Shorten the list, or split the row into several.",
            Kind::NoAssistant => {
                "Add the answer to be learned as a message of the role 'assistant'."
            }
            Kind::NothingToTrain => {
                "Give an answer that is not empty and has no weight of 0, or remove the row."
            }
            Kind::TooLong => {
                "Shorten the row, raise x_training.data.max_length, or choose another x_training.data.truncation."
            }
            Kind::NotRendered => {
                "Bring the messages into roles and an order that the model's chat template knows, or use another model."
            }
        };
        text.to_owned()
    }
}
