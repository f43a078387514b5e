"""RoBERTa, XLM-RoBERTa and CamemBERT: BERT with another head; ELECTRA too, whose small sizes have a narrower embedding."""

from skerry.anatomy.families.bert import FAMILY as BERT
from skerry.anatomy.family import Matrix

FAMILY = BERT.but(
    name="roberta",
    model_types=frozenset({"roberta", "xlm-roberta", "camembert", "electra"}),
    outer={
        "w.embed.project": Matrix("/embeddings_project.weight"),
        "w.head": [Matrix("//lm_head.decoder.weight"), Matrix("//generator_lm_head.weight")],
    },
)
