"""Word lists that the starter's grammar draws from: plain English, a few families of invented proper names."""


def _words(text: str) -> tuple[str, ...]:
    """Split a block of comma-separated entries; an entry may hold spaces."""
    return tuple(entry.strip() for entry in text.replace("\n", " ").split(",") if entry.strip())


GIRLS = _words("""Maria, Anna, Lily, Emma, Sofia, Clara, Julia, Nora, Alice, Ruth, Ella, Grace, Hannah, Ivy,
Jane, Karen, Laura, Mia, Nina, Olga, Paula, Rosa, Sara, Tina, Uma, Vera, Wendy, Zoe, Amy, Beth, Carla, Diana,
Eva, Fiona, Gina, Helen, Irene, Joan, Kate, Lucy, Mary, Naomi, Olivia, Priya, Rachel, Susan, Tara, Violet,
Yara, Amara, Bianca, Celine, Dalia, Edith, Freya, Greta, Hilda, Ingrid, Jasmine, Keiko, Leila, Mei, Nadia,
Odette, Petra, Ramona, Selma, Thea, Ursula, Valeria, Winnie, Yasmin, Zelda, Agnes, Brenda, Chloe, Daphne,
Elena, Flora, Gloria, Heidi, Isabel, Judith, Kira, Linda, Martha, Nell, Opal, Pearl, Rita, Stella, Tessa,
Aisha, Fatima, Lin, Rina, Sakura, Anika, Marta, Lena, Carmen, Dora, Erin, Holly, Iris, Juno, Lola, Maya, Noor,
Polly, Robin, Sandra, Tamara, Wilma, Alma, Bella""")
BOYS = _words("""Tom, Ben, Jack, Paul, Mark, David, Peter, Sam, Max, Leo, Adam, Bruno, Carl, Daniel, Eric,
Frank, George, Henry, Ivan, James, Kevin, Louis, Martin, Noah, Oscar, Philip, Quentin, Robert, Simon, Thomas,
Umar, Victor, Walter, Xavier, Yusuf, Zack, Albert, Boris, Charles, Dennis, Edward, Felix, Gordon, Harold, Ian,
John, Karl, Liam, Michael, Nathan, Oliver, Patrick, Ravi, Stefan, Tim, Vincent, William, Aaron, Bernard,
Colin, Dylan, Elias, Fabian, Gabriel, Hugo, Igor, Jonas, Kenji, Lars, Mateo, Nils, Omar, Pablo, Ramon, Sven,
Tariq, Anton, Barry, Cyril, Derek, Emil, Floyd, Gus, Hamid, Isaac, Jorge, Kurt, Lucas, Marco, Neil, Otto,
Pedro, Ralph, Saul, Theo, Arthur, Bashir, Cedric, Dimitri, Ernest, Finn, Gilbert, Hassan, Jasper, Kofi, Luca,
Milo, Nico, Owen, Raj, Silas, Toby, Wesley, Yann""")
SURNAME_HEADS = _words("""Hart, Green, Black, Wood, Stone, Brad, Whit, Lang, Marsh, Ash, Thorn, Fair, Gold,
Silver, Wal, Hal, Mor, Wins, Alder, Ember, Har, Lock, Red, Row, Hol, Car, Bel, Dun, Ever, Fen, Gar, Hamp, Kel,
Lin, Mil, Nor, Pem, Quin, Rad, Sel, Tem, Ves, Wex, York""")
SURNAME_TAILS = _words("""well, man, wood, son, ley, ford, by, worth, low, field, stead, berg, ton, more,
croft, smith, lake, dale, ridge, wick, brook, stein, mond, ers""")
TOWN_HEADS = _words("""Ash, Oak, Elm, River, Bridge, Lake, Hill, Stone, Clear, Red, White, Black, Green, Gold,
Silver, North, South, East, West, Summer, Winter, Spring, High, Low, Old, New, Fox, Wolf, Bear, Deer, Swan,
Crow, Mill, Salt, Sand, Wind, Storm, Rose, Thorn, Maple, Cedar, Apple, Cherry, Honey, Kings, Queens, Bishops,
Market, Copper, Iron""")
TOWN_TAILS = _words("""ford, ton, ville, bury, mouth, field, port, haven, wick, stead, gate, dale, brook,
well, ham, bridge, burg, minster, cliff, shore, wood, moor, water, side, bay""")
CITIES = _words("""Paris, London, Rome, Madrid, Berlin, Vienna, Oslo, Athens, Cairo, Tokyo, Delhi, Lima,
Lisbon, Dublin, Prague, Warsaw, Zurich, Boston, Denver, Chicago, Dallas, Seattle, Toronto, Sydney, Nairobi,
Lagos, Seoul, Hanoi, Geneva, Milan, Naples, Munich, Hamburg, Porto, Seville, Bergen, Krakow, Istanbul, Havana,
Montreal""")
STREETS = _words("Street, Road, Lane, Avenue, Square, Alley, Hill, Row, Drive, Court")
JOBS = _words("""baker, teacher, doctor, nurse, farmer, painter, singer, writer, pilot, sailor, driver, cook,
waiter, tailor, barber, plumber, carpenter, gardener, fisherman, lawyer, judge, dentist, soldier, guard,
clerk, librarian, engineer, builder, miner, potter, weaver, butcher, florist, jeweller, musician, actor,
dancer, poet, editor, printer, photographer, mechanic, electrician, firefighter, postman, shopkeeper, banker,
chemist, biologist, astronomer, architect, translator, shepherd, beekeeper, blacksmith, cobbler, locksmith,
clockmaker, glassblower, roofer, vet, optician, surgeon, coach, referee, cleaner, porter, conductor, captain,
mayor, sculptor, juggler, ferryman, ranger""")
ANIMALS = _words("""dog, cat, horse, cow, sheep, goat, pig, duck, goose, chicken, rabbit, hamster, parrot,
owl, fox, wolf, bear, deer, mouse, rat, frog, turtle, snake, lizard, monkey, lion, tiger, elephant, zebra,
camel, donkey, swan, crow, sparrow, eagle, hawk, pigeon, squirrel, hedgehog, badger, otter, beaver, seal,
whale, dolphin, shark, crab, snail, spider, bee, ant, butterfly, beetle, moth, worm, penguin, kitten, puppy,
pony, lamb, calf, canary, toad, mole""")
PETS = _words("dog, cat, rabbit, hamster, parrot, turtle, pony, kitten, puppy, goat, duck, canary, donkey, goose, lamb")
PET_NAMES = _words("""Rex, Biscuit, Shadow, Pepper, Ginger, Pip, Bubbles, Muffin, Patch, Smoky, Whiskers,
Spot, Domino, Sunny, Lucky, Buster, Coco, Fudge, Hazel, Jumbo, Marble, Nutmeg, Olive, Pickle, Rusty, Snowy,
Toffee, Waffles, Ziggy, Bandit, Comet, Dusty, Flash, Misty, Pumpkin, Scout, Tiger, Velvet, Acorn, Button""")
FOODS = _words("""bread, butter, cheese, milk, honey, rice, soup, pasta, salad, cake, pie, jam, yogurt, cream,
chicken, beef, fish, ham, bacon, corn, cabbage, spinach, lettuce, garlic, ginger, pepper, salt, sugar, flour,
oil, vinegar, mustard, chocolate, coffee, tea, juice, lemonade, water, porridge, cereal, tofu, pumpkin,
celery, parsley, basil, cinnamon, oatmeal, popcorn, toast, stew, curry, salmon, tuna, sausage, broccoli,
syrup, ice cream, olive oil, orange juice, peanut butter, brown sugar, green tea, tomato sauce, goat cheese,
soy sauce, apple juice""")
PRODUCE = _words("""apple, pear, plum, cherry, peach, lemon, orange, banana, melon, grape, fig, date, onion,
carrot, potato, tomato, turnip, egg, nut, almond, walnut, olive, bean, pea, mushroom, cucumber, radish, leek,
mango, lime, apricot, coconut, strawberry, raspberry, blueberry, biscuit, muffin, pancake, sandwich, cookie,
bagel, sausage, avocado""")
DISHES = _words("""vegetable soup, apple pie, fish stew, chicken curry, lemon cake, mushroom risotto, potato
salad, tomato soup, bean stew, carrot cake, rice pudding, onion tart, cheese omelette, plum jam, fruit salad,
beef stew, pumpkin pie, garlic bread, pea soup, noodle salad, spinach lasagne, corn bread, walnut loaf, peach
tart, leek soup""")
THINGS = _words("""book, lamp, key, cup, plate, spoon, knife, fork, chair, table, clock, watch, ring, hat,
coat, scarf, glove, shoe, boot, sock, shirt, dress, belt, bag, box, basket, bottle, jar, pot, pan, kettle,
candle, mirror, comb, brush, towel, blanket, pillow, carpet, curtain, picture, map, letter, stamp, coin,
purse, wallet, pen, pencil, notebook, ruler, hammer, nail, saw, rope, ladder, bucket, broom, shovel, wheel,
bicycle, kite, ball, doll, drum, flute, guitar, violin, piano, camera, radio, phone, umbrella, tent, torch,
stick, stone, shell, feather, flower, bell, button, needle, ribbon, whistle, marble, puzzle, puppet, helmet,
lantern, telescope, compass, magnet, statue, vase, tray, teapot, napkin, suitcase, backpack, postcard, diary,
magazine, ticket, parcel, necklace, bracelet, crown, jacket, sweater, apron, sandal, slipper, hook, chain,
brick, tile, anchor, oar, sail, flag, mask, toy boat, bookmark""")
MATERIALS = _words("""wooden, metal, glass, paper, plastic, leather, silver, golden, copper, iron, stone,
silk, woollen, cotton, clay, velvet, rubber, bronze""")
COLOURS = _words("""red, blue, green, yellow, white, black, brown, grey, pink, purple, orange, silver, golden,
cream, turquoise, violet, crimson, olive, navy, scarlet""")
LOOKS = _words("""old, new, small, big, tiny, huge, heavy, light, broken, clean, dirty, shiny, dusty, round,
square, long, short, wide, narrow, thin, thick, smooth, rough, soft, hard, pretty, plain, strange, lovely,
ugly, rare, cheap, expensive, empty, full, wet, dry, warm, cold, simple, fine, bright, dark, faded, painted,
polished, striped, worn""")
MOODS = _words("""happy, sad, tired, angry, proud, calm, nervous, curious, lonely, hungry, thirsty, sleepy,
excited, bored, worried, surprised, grateful, jealous, cheerful, afraid, patient, shy, brave, gentle,
stubborn, lazy, busy, quiet""")
TRAITS = _words("""kind, honest, clever, brave, patient, shy, gentle, stubborn, lazy, careful, cheerful,
friendly, funny, generous, loyal, modest, polite, quiet, serious, strict, wise, witty, helpful, lively,
punctual, thoughtful""")
PLACES = _words("""park, market, library, school, station, harbour, museum, bakery, church, castle, bridge,
river, lake, forest, garden, kitchen, cellar, attic, barn, stable, field, hill, beach, island, tower, theatre,
cinema, hospital, bank, post office, town hall, square, zoo, farm, mill, factory, workshop, office, hotel,
inn, cafe, restaurant, airport, playground, stadium, swimming pool, bookshop, pharmacy, greenhouse,
lighthouse, cave, meadow, orchard, vineyard, valley, village, courtyard, bus stop, campsite, fountain,
cemetery, chapel, gallery, laundry, pier""")
STORES = _words("market, bakery, grocery, village shop, corner shop, farm shop, supermarket, market hall, store")
GLAD = _words("happy, proud, calm, grateful, cheerful, pleased, delighted, glad, content")
LOW = _words("sad, lonely, bored, tired, nervous, shy, homesick")
SPOTS = _words("""under the bed, behind the door, on the shelf, in the drawer, next to the window, on the
table, in the cupboard, under the chair, behind the curtain, in the basket, on the stairs, near the fireplace,
in the box, under the carpet, on the roof, in the cellar, in the garden, behind the barn, by the gate, in the
attic, under the old tree, on the bench, beside the stove, in the closet, on the wall""")
HOBBIES = _words("""reading, painting, fishing, cooking, baking, gardening, singing, dancing, swimming,
running, hiking, cycling, skating, sewing, knitting, chess, football, tennis, photography, pottery,
birdwatching, sailing, climbing, camping, drawing, writing, yoga, juggling, archery, carpentry, astronomy,
karate, rowing, skiing, surfing, origami""")
SUBJECTS = _words("""history, music, physics, biology, chemistry, geography, mathematics, art, poetry, law,
medicine, grammar, astronomy, Latin, French, Spanish, German, Italian, Greek, Japanese, economics, geology,
drama""")
WEATHER = _words("""sunny, rainy, windy, cloudy, foggy, snowy, stormy, icy, warm, cold, mild, hot, dry, humid,
freezing, grey, bright, wet, chilly, misty""")
DAYS = _words("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday")
MONTHS = _words("""January, February, March, April, May, June, July, August, September, October, November,
December""")
SEASONS = _words("spring, summer, autumn, winter")
RELATIONS = _words("""friend, neighbour, cousin, brother, sister, uncle, aunt, teacher, boss, colleague,
roommate, grandmother, grandfather, mother, father, nephew, niece, classmate""")
VEHICLES = _words("""car, bus, train, bicycle, boat, ferry, taxi, tram, truck, van, plane, motorbike,
carriage""")
TOPICS = _words("""rivers, stars, birds, trains, ships, castles, kings, whales, volcanoes, gardens, bridges,
clocks, robots, dragons, mountains, insects, planets, pirates, horses, trees, islands, winds, coins, songs,
bees, maps""")
SHOP_KINDS = _words("""bakery, bookshop, florist, pharmacy, toy shop, shoe shop, grocery, cafe, tea room,
hardware shop, music shop, fish market, tailor shop, bicycle shop, pet shop, paint shop, candle shop, cheese
shop, hat shop""")
TITLE_A = _words("""Silent, Broken, Golden, Silver, Midnight, Summer, Winter, Lonely, Crystal, Paper, Velvet,
Electric, Distant, Hollow, Burning, Frozen, Gentle, Hidden, Little, Lost, Purple, Quiet, Restless, Scarlet,
Secret, Slow, Sleeping, Stolen, Sweet, Wild, Wandering, Yellow, Blue, Crimson, Dancing, Falling, Floating,
Forgotten, Neon, Rainy""")
TITLE_B = _words("""River, Garden, Moon, Rain, Road, Heart, Sky, Ocean, Mirror, Window, Letter, Station,
Train, Bird, Fire, Forest, Shadow, Island, Morning, Night, Storm, Summer, Tower, Valley, Wind, Wolf, Harbour,
Highway, Lantern, Kite, Machine, Mountain, Tiger, Planet, Piano, Rose, Shore, Star, Stone, Street, Sun,
Thunder, Voices, Waves, City""")
# verb, past tense: what a person does to a thing, and what one does with no object
DID = tuple(
    tuple(pair.split("/"))
    for pair in _words("""find/found, buy/bought, sell/sold, lose/lost, break/broke,
wash/washed, paint/painted, carry/carried, hide/hid, borrow/borrowed, bring/brought, take/took, clean/cleaned,
drop/dropped, fix/fixed, draw/drew, open/opened, pack/packed, keep/kept, admire/admired, wrap/wrapped, choose/chose,
forget/forgot, inspect/inspected, polish/polished, measure/measured, store/stored, collect/collected, show/showed,
describe/described, order/ordered, return/returned, repair/repaired, lift/lifted, examine/examined, steal/stole""")
)
ADVERBS = _words("""quickly, slowly, quietly, carefully, happily, sadly, suddenly, gently, loudly, bravely,
calmly, eagerly, gladly, kindly, nervously, patiently, politely, proudly, softly, wisely""")
